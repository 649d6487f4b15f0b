// The official openai package, unmodified, against a running house (see tests/it/sdk.rs).
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { createRequire } from "node:module";
import { join } from "node:path";
import { test } from "node:test";
import { pathToFileURL } from "node:url";

const home = process.env.POINTSMAN_TEST_NODE_DIR ?? import.meta.dirname;
const path = createRequire(join(home, "package.json")).resolve("openai");
const { default: OpenAI } = await import(pathToFileURL(path).href);

const model = "scripted/chat";
const messages = [{ role: "user", content: "hello" }];
const parameters = {
  type: "object",
  properties: { city: { type: "string" }, days: { type: "integer" } },
  required: ["city", "days"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "get_weather", description: "Weather", parameters } }];
const client = (options = {}) => new OpenAI(options);

test("chat", async () => {
  const answer = await client().chat.completions.create({ model, messages });
  assert.match(answer.choices[0].message.content, /hello/);
  assert.ok(answer.usage.total_tokens > 0);
  assert.match(answer._request_id, /^req_/);
});

test("stream", async () => {
  const whole = await client().chat.completions.create({ model, messages });
  let text = "";
  for await (const chunk of await client().chat.completions.create({ model, messages, stream: true })) {
    text += chunk.choices[0]?.delta?.content ?? "";
    assert.equal(chunk.usage ?? null, null);
  }
  assert.equal(text, whole.choices[0].message.content);
});

test("stream with usage", async () => {
  const stream = await client().chat.completions.create({
    model, messages, stream: true, stream_options: { include_usage: true },
  });
  let last;
  for await (const chunk of stream) last = chunk;
  assert.deepEqual(last.choices, []);
  assert.ok(last.usage.completion_tokens > 0);
});

test("stream aborted", async () => {
  const stream = await client().chat.completions.create({
    model, messages, stream: true, x_script: { chunks: 500, gap_ms: 10 },
  });
  let seen = 0;
  for await (const _ of stream) if (++seen === 3) break;
  assert.equal(seen, 3);
});

test("tools, whole and streamed", async () => {
  const asked = await client().chat.completions.create({ model, messages, tools });
  const call = asked.choices[0].message.tool_calls[0];
  assert.equal(asked.choices[0].finish_reason, "tool_calls");
  assert.deepEqual(Object.keys(JSON.parse(call.function.arguments)).sort(), ["city", "days"]);
  const then = [...messages, asked.choices[0].message, { role: "tool", tool_call_id: call.id, content: "sunny" }];
  const answer = await client().chat.completions.create({ model, messages: then, tools });
  assert.match(answer.choices[0].message.content, /sunny/);
  const runner = client().chat.completions.stream({ model, messages, tools });
  const final = await runner.finalChatCompletion();
  assert.equal(final.choices[0].message.tool_calls[0].function.name, "get_weather");
});

test("JSON schema", async () => {
  const response_format = { type: "json_schema", json_schema: { name: "w", schema: parameters, strict: true } };
  const answer = await client().chat.completions.parse({ model, messages, response_format });
  assert.deepEqual(Object.keys(JSON.parse(answer.choices[0].message.content)).sort(), ["city", "days"]);
});

test("embeddings, packed and plain", async () => {
  const ask = { model: "scripted/embed", input: ["one", "two"] };
  const packed = await client().embeddings.create(ask);
  const plain = await client().embeddings.create({ ...ask, encoding_format: "float" });
  assert.equal(packed.data.length, 2);
  assert.deepEqual([...packed.data[1].embedding], plain.data[1].embedding);
});

test("models", async () => {
  const names = [];
  for await (const one of client().models.list()) names.push(one.id);
  // Private models are listed with their workspace.
  const listed = "default@scripted/chat";
  assert.ok(names.includes(listed));
  assert.equal((await client().models.retrieve(listed)).id, listed);
});

test("bad key", async () => {
  const call = client({ apiKey: "pm_wrong" }).chat.completions.create({ model, messages });
  await assert.rejects(call, (error) => {
    assert.ok(error instanceof OpenAI.AuthenticationError);
    assert.equal(error.code, "invalid_api_key");
    assert.match(error.requestID, /^req_/);
    return true;
  });
});

test("bad request and unknown model", async () => {
  await assert.rejects(client().chat.completions.create({ model, messages: [] }), OpenAI.BadRequestError);
  await assert.rejects(client().chat.completions.create({ model: "scripted/none", messages }), OpenAI.NotFoundError);
});

test("429 is honoured, then raised", async () => {
  const x_script = { status: 429, headers: [["retry-after", "2"]] };
  const started = performance.now();
  const call = client({ maxRetries: 1 }).chat.completions.create({ model: "scripted/limited", messages, user: randomUUID(), x_script });
  await assert.rejects(call, OpenAI.RateLimitError);
  assert.ok(performance.now() - started >= 1000);
});

test("429 that ends", async () => {
  const x_script = { status: 429, headers: [["retry-after", "1"]], first: 1 };
  const answer = await client({ maxRetries: 4 }).chat.completions.create({ model: "scripted/recovering", messages, user: randomUUID(), x_script });
  assert.ok(answer.choices[0].message.content);
});

test("a broken stream is an error", async () => {
  const stream = await client({ maxRetries: 0 }).chat.completions.create({
    model: "scripted/broken", messages, stream: true, x_script: { end: { cut: 3 } },
  });
  await assert.rejects(async () => { for await (const _ of stream); }, OpenAI.APIError);
});
