// Vercel's ai package against a server: text, a stream with its usage, an object, a loop with a tool.
import assert from "node:assert";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const provider = createOpenAICompatible({
  name: "dashinfer", baseURL: `${process.argv[2]}/v1`, includeUsage: true, supportsStructuredOutputs: true,
});
const model = provider("tiny_chat");
const prompt = "What is 17 + 25?";

assert.equal((await generateText({ model, prompt, temperature: 0 })).text, "17 + 25 = 42");

const stream = streamText({ model, prompt, temperature: 0 });
let text = "";
for await (const piece of stream.textStream) text += piece;
assert.equal(text, "17 + 25 = 42");
assert.equal((await stream.usage).outputTokens, 11);

const { object } = await generateObject({
  model, prompt: "Give me Ada, who is 36.", schema: z.object({ name: z.string(), age: z.number().int() }),
});
assert.equal(typeof object.age, "number");

let city;
await generateText({
  model, prompt: "What is the weather in Paris?", temperature: 0, maxOutputTokens: 60, stopWhen: stepCountIs(2),
  tools: {
    get_weather: tool({
      description: "Weather of a city",
      inputSchema: z.object({ city: z.string() }),
      execute: async (input) => ((city = input.city), { sky: "clear" }),
    }),
  },
});
assert.equal(city, "Paris");
console.log("vercel ai: done");
