"""The official openai package, unmodified, against a running house (see tests/it/sdk.rs)."""

import json
import time
import unittest
import uuid

import openai

MODEL = "scripted/chat"
# Private models are listed with their workspace.
LISTED = "default@scripted/chat"
HELLO = [{"role": "user", "content": "hello"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


def client(**options):
    return openai.OpenAI(**options)


class Chat(unittest.TestCase):
    def test_chat(self):
        answer = client().chat.completions.create(model=MODEL, messages=HELLO)
        self.assertIn("hello", answer.choices[0].message.content)
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        self.assertGreater(answer.usage.prompt_tokens, 0)
        self.assertEqual(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens)

    def test_stream(self):
        whole = client().chat.completions.create(model=MODEL, messages=HELLO).choices[0].message.content
        stream = client().chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        chunks = list(stream)
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        self.assertEqual(text, whole)
        self.assertTrue(all(c.usage is None for c in chunks), "usage was not asked for")

    def test_stream_with_usage(self):
        stream = client().chat.completions.create(
            model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        last = list(stream)[-1]
        self.assertEqual(last.choices, [])
        self.assertGreater(last.usage.completion_tokens, 0)

    def test_stream_closed_early(self):
        stream = client().chat.completions.create(
            model=MODEL, messages=HELLO, stream=True, extra_body={"x_script": {"chunks": 500, "gap_ms": 10}}
        )
        for number, _ in enumerate(stream):
            if number == 3:
                break
        stream.close()

    def test_tools(self):
        asked = client().chat.completions.create(model=MODEL, messages=HELLO, tools=[TOOL])
        call = asked.choices[0].message.tool_calls[0]
        self.assertEqual(asked.choices[0].finish_reason, "tool_calls")
        self.assertEqual(call.function.name, "get_weather")
        self.assertIn("city", json.loads(call.function.arguments))
        messages = HELLO + [
            asked.choices[0].message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
        ]
        answer = client().chat.completions.create(model=MODEL, messages=messages, tools=[TOOL])
        self.assertIn("sunny", answer.choices[0].message.content)

    def test_tools_in_a_stream(self):
        stream = client().chat.completions.create(model=MODEL, messages=HELLO, tools=[TOOL], stream=True)
        arguments = ""
        for chunk in stream:
            for call in (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []:
                arguments += call.function.arguments or ""
        self.assertEqual(set(json.loads(arguments)), {"city", "days"})

    def test_json_schema(self):
        schema = TOOL["function"]["parameters"]
        answer = client().chat.completions.create(
            model=MODEL,
            messages=HELLO,
            response_format={"type": "json_schema", "json_schema": {"name": "w", "schema": schema, "strict": True}},
        )
        self.assertEqual(set(json.loads(answer.choices[0].message.content)), {"city", "days"})

    def test_unknown_fields_pass(self):
        answer = client().chat.completions.create(model=MODEL, messages=HELLO, extra_body={"x_script": {"text": "as told"}})
        self.assertEqual(answer.choices[0].message.content, "as told")
        self.assertEqual(answer.model_extra["x_vendor_extra"], {"kept": True})

    def test_large_prompt(self):
        messages = [{"role": "user", "content": "word " * 400_000}]
        answer = client().chat.completions.create(model=MODEL, messages=messages)
        self.assertGreater(answer.usage.prompt_tokens, 400_000)

    def test_request_id(self):
        answer = client().chat.completions.create(model=MODEL, messages=HELLO)
        self.assertTrue(answer._request_id.startswith("req_"))
        raw = client().chat.completions.with_raw_response.create(model=MODEL, messages=HELLO)
        self.assertTrue(raw.headers["x-pointsman-revision"])

    def test_async(self):
        import asyncio

        async def several():
            async with openai.AsyncOpenAI() as many:
                calls = [many.chat.completions.create(model=MODEL, messages=HELLO) for _ in range(20)]
                return await asyncio.gather(*calls)

        answers = asyncio.run(several())
        self.assertEqual(len({a.id for a in answers}), 20)


class Embeddings(unittest.TestCase):
    def test_float_and_base64_are_the_same(self):
        # Without encoding_format the package asks for base64 and unpacks it.
        packed = client().embeddings.create(model="scripted/embed", input=["one", "two"])
        plain = client().embeddings.create(model="scripted/embed", input=["one", "two"], encoding_format="float")
        self.assertEqual(len(packed.data), 2)
        for a, b in zip(packed.data, plain.data):
            self.assertEqual(list(a.embedding), list(b.embedding))

    def test_inputs(self):
        for value in ["one", ["one"], [1, 2, 3], [[1, 2], [3]]]:
            answer = client().embeddings.create(model="scripted/embed", input=value)
            self.assertEqual(len(answer.data), 2 if value == [[1, 2], [3]] else 1)


class Models(unittest.TestCase):
    def test_list(self):
        names = [m.id for m in client().models.list()]
        self.assertIn(LISTED, names)
        self.assertEqual(client().models.retrieve(LISTED).id, LISTED)

    def test_unknown(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            client().chat.completions.create(model="scripted/nothing", messages=HELLO)
        self.assertEqual(caught.exception.code, "model_not_found")


class Errors(unittest.TestCase):
    def test_bad_key(self):
        with self.assertRaises(openai.AuthenticationError) as caught:
            client(api_key="pm_wrong").chat.completions.create(model=MODEL, messages=HELLO)
        self.assertEqual(caught.exception.code, "invalid_api_key")
        self.assertTrue(caught.exception.request_id.startswith("req_"))

    def test_bad_request(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            client().chat.completions.create(model=MODEL, messages=[])
        self.assertEqual(caught.exception.param, "messages")

    def test_rate_limit_is_honoured_then_raised(self):
        # Models of their own: what a refusal does to the router's idea of a provider stays there.
        script = {"status": 429, "headers": [["retry-after", "2"]]}
        started = time.monotonic()
        with self.assertRaises(openai.RateLimitError) as caught:
            client(max_retries=1).chat.completions.create(
                model="scripted/limited", messages=HELLO, user=str(uuid.uuid4()), extra_body={"x_script": script}
            )
        self.assertGreaterEqual(time.monotonic() - started, 1.0)
        self.assertGreaterEqual(int(caught.exception.response.headers["retry-after"]), 1)

    def test_rate_limit_that_ends(self):
        script = {"status": 429, "headers": [["retry-after", "1"]], "first": 1}
        answer = client(max_retries=4).chat.completions.create(
            model="scripted/recovering", messages=HELLO, user=str(uuid.uuid4()), extra_body={"x_script": script}
        )
        self.assertTrue(answer.choices[0].message.content)

    def test_broken_stream(self):
        stream = client(max_retries=0).chat.completions.create(
            model="scripted/broken", messages=HELLO, stream=True, extra_body={"x_script": {"end": {"cut": 3}}}
        )
        with self.assertRaises(openai.APIError):
            list(stream)


if __name__ == "__main__":
    unittest.main()
