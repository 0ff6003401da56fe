/**
 * Chat formats, as the Jinja templates that Hugging Face's tokenizer_config.json and GGUF's tokenizer.chat_template hold; they are rendered with
 * `messages` ({role, content}), `bos_token`, `eos_token` and `add_generation_prompt`.
 */
import { Schema } from "effect"

export const ChatFormat = Schema.Literals(["guanaco"])
export type ChatFormat = typeof ChatFormat.Type

/**
 * openassistant-guanaco: "### Human: …### Assistant: …</s>" with nothing between the turns. There is no system turn: messages of other roles
 * are left out. The generation prompt has no space at its end, because the answer's first piece brings its own ▁.
 */
export const guanacoTemplate = [
  "{{ bos_token }}",
  "{% for message in messages %}",
  "{% if message['role'] == 'user' %}{{ '### Human: ' + message['content'] }}",
  "{% elif message['role'] == 'assistant' %}{{ '### Assistant: ' + message['content'] + eos_token }}",
  "{% endif %}{% endfor %}",
  "{% if add_generation_prompt %}{{ '### Assistant:' }}{% endif %}"
].join("")

export const chatTemplate: Record<ChatFormat, string> = { guanaco: guanacoTemplate }
