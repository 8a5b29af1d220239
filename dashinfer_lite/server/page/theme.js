// Dark or light: as the system has it, until the button says otherwise. Runs before the page is drawn.

(() => {
  const KEY = "dashinfer-theme";
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const systems = () => (system.matches ? "dark" : "light");
  const chosen = localStorage.getItem(KEY);
  if (chosen) root.dataset.theme = chosen;

  addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme").addEventListener("click", () => {
      const next = (root.dataset.theme ?? systems()) === "dark" ? "light" : "dark";
      if (next === systems()) {
        delete root.dataset.theme;
        localStorage.removeItem(KEY);
      } else {
        root.dataset.theme = next;
        localStorage.setItem(KEY, next);
      }
    });
  });
})();
