"""A first request, a stream, a tool call, embeddings and a refused key with the official client.

pip install openai; POINTSMAN_API_KEY as printed at the first start.
"""

import os

from openai import AuthenticationError, OpenAI

url = os.environ.get("POINTSMAN_URL", "http://127.0.0.1:7080") + "/v1"
model = os.environ.get("MODEL", "sandbox/echo")
client = OpenAI(base_url=url, api_key=os.environ["POINTSMAN_API_KEY"])

answer = client.chat.completions.with_raw_response.create(
    model=model, messages=[{"role": "user", "content": "Hello"}]
)
print("answer:   ", answer.parse().choices[0].message.content)
print("answered: ", answer.headers["x-pointsman-resolved-model"])
print("cost, USD:", answer.headers.get("x-pointsman-cost-usd", "no price"))

print("stream:   ", end=" ")
with client.chat.completions.create(
    model=model, stream=True, messages=[{"role": "user", "content": "one two three"}]
) as stream:
    for chunk in stream:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()

weather = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
# The sandbox calls the tool it is told to; a model decides by itself.
called = client.chat.completions.create(
    model=model,
    tools=[weather],
    messages=[{"role": "user", "content": '[[tool:get_weather {"city":"Paris"}]]'}],
)
for call in called.choices[0].message.tool_calls or []:
    print("tool call:", call.function.name, call.function.arguments)

if model.startswith("sandbox/"):
    vector = client.embeddings.create(model="sandbox/embed", input="Hello").data[0].embedding
    print("embedding:", [round(number, 3) for number in vector])

try:
    OpenAI(base_url=url, api_key="pm_wrong").models.list()
except AuthenticationError as error:
    print("refused:  ", error.code)
