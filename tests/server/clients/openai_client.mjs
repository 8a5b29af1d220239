// OpenAI's JavaScript client against a server: an answer, a stream, a stream that is aborted, embeddings, responses.
import assert from "node:assert";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const model = (await client.models.list()).data[0].id;
const messages = [{ role: "user", content: "What is 17 + 25?" }];

const whole = await client.chat.completions.create({ model, messages, temperature: 0 });
assert.equal(whole.choices[0].message.content, "17 + 25 = 42");

let text = "";
const stream = await client.chat.completions.create({
  model, messages, temperature: 0, stream: true, stream_options: { include_usage: true },
});
for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
assert.equal(text, "17 + 25 = 42");

const endless = await client.completions.create({ model, prompt: "Long ago", max_tokens: 2000, stream: true });
let pieces = 0;
for await (const _ of endless) if (++pieces === 5) break;
endless.controller.abort();

const vectors = await client.embeddings.create({ model, input: ["a fox", "a bear"] });
assert.equal(vectors.data[1].embedding.length, 256);
const response = await client.responses.create({ model, input: "What is 17 + 25?", temperature: 0 });
assert.equal(response.output_text, "17 + 25 = 42");
await assert.rejects(client.chat.completions.create({ model, messages, temperature: 9 }), { status: 400 });
console.log("npm openai: done");
