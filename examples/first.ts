// A first request and a stream with the official client.
// npm install openai; POINTSMAN_API_KEY as printed at the first start. Run it with `npx tsx first.ts`, or as it is
// with Node 22.18 and newer.
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: `${process.env.POINTSMAN_URL ?? "http://127.0.0.1:7080"}/v1`,
  apiKey: process.env.POINTSMAN_API_KEY,
});
const model = process.env.MODEL ?? "sandbox/echo";

const { data, response } = await client.chat.completions
  .create({ model, messages: [{ role: "user", content: "Hello" }] })
  .withResponse();
console.log("answer:   ", data.choices[0].message.content);
console.log("answered: ", response.headers.get("x-pointsman-resolved-model"));
console.log("cost, USD:", response.headers.get("x-pointsman-cost-usd") ?? "no price");

const stream = await client.chat.completions.create({
  model,
  stream: true,
  messages: [{ role: "user", content: "one two three" }],
});
process.stdout.write("stream:    ");
for await (const chunk of stream) process.stdout.write(chunk.choices[0]?.delta?.content ?? "");
console.log();

for await (const listed of client.models.list()) console.log("model:    ", listed.id);
