/**
 * From text to what the model scores: the context/continuation boundary, truncation and rolling windows of lm-evaluation-harness
 * (lm_eval/api/model.py `_encode_pair`, models/huggingface.py `_loglikelihood_tokens`, utils.py `get_rolling_token_windows`). Pure functions.
 */
import { Schema } from "effect"

/**
 * current: BOS in front of every prompt, as lm-evaluation-harness does today for Llama tokenizers.
 * legacy: no BOS, and EOS as the prefix of what has none; the code that made TinyLlama's published table.
 */
export const Profile = Schema.Literals(["current", "legacy"])
export type Profile = typeof Profile.Type

/** Ids of a text without BOS and EOS, with SentencePiece's dummy prefix. */
export type Encode = (text: string) => Int32Array

/** One row for the model: `targets[i]` is what row i of the output predicts, -1 where nothing is scored. Equal lengths. */
export interface ScoredSequence {
  readonly input: Int32Array
  readonly targets: Int32Array
}

/** Sum of the scored targets' log-probabilities (natural logarithm); `greedy`: each of them was the most probable one. */
export interface LogLikelihood {
  readonly sum: number
  readonly greedy: boolean
}

/** Llama 2's ids. */
export const bosId = 1
export const eosId = 2

/** What stands in front of a text that has no context. */
export const prefixId = (profile: Profile): number => (profile === "current" ? bosId : eosId)

/** Python's str.isspace at the end of a text; JavaScript's \s differs in five characters. */
// oxlint-disable-next-line no-control-regex
const trailingWhitespace = /[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+$/u

const bosText = "<s>"

const encodePrompt = (encode: Encode, text: string, profile: Profile): Int32Array => {
  if (profile === "legacy") return encode(text)
  return Int32Array.of(bosId, ...encode(text.startsWith(bosText) ? text.slice(bosText.length) : text))
}

/**
 * Ids of a context and of the continuation that is scored after it. Whitespace at the end of the context moves to the continuation; the whole is encoded
 * once and cut where the context's own encoding ends, so that the continuation gets no dummy prefix of its own.
 */
export const encodePair = (
  encode: Encode,
  context: string,
  continuation: string,
  profile: Profile
): { readonly context: Int32Array; readonly continuation: Int32Array } => {
  const spaces = trailingWhitespace.exec(context)?.[0] ?? ""
  const head = context.slice(0, context.length - spaces.length)
  const tail = spaces + continuation
  if (head === "") {
    const text = profile === "current" && tail.startsWith(bosText) ? tail.slice(bosText.length) : tail
    return { context: Int32Array.of(prefixId(profile)), continuation: encode(text) }
  }
  const ids = encodePrompt(encode, head, profile)
  return { context: ids, continuation: encodePrompt(encode, head + tail, profile).subarray(ids.length) }
}

/**
 * The row that scores `continuation` after `context`, at most `limit` ids long: the context loses its front. The continuation must have between
 * 1 and `limit` ids.
 */
export const pairSequence = (context: Int32Array, continuation: Int32Array, limit: number): ScoredSequence => {
  const all = new Int32Array(context.length + continuation.length)
  all.set(context)
  all.set(continuation, context.length)
  const kept = all.subarray(Math.max(0, all.length - limit - 1))
  const input = kept.slice(0, -1)
  const targets = kept.slice(1)
  targets.fill(-1, 0, targets.length - continuation.length)
  return { input, targets }
}

/**
 * Windows over a whole text, each of its ids scored exactly once: the first starts with `prefix`, a full one has one id of context, the last is moved
 * back so that its input is still `limit` ids long.
 */
export const rollingWindows = (ids: Int32Array, prefix: number, limit: number): ReadonlyArray<ScoredSequence> => {
  const windows: Array<ScoredSequence> = []
  const first = Math.min(limit, ids.length)
  if (first > 0)
    windows.push({ input: Int32Array.of(prefix, ...ids.subarray(0, first - 1)), targets: ids.slice(0, first) })
  let done = first
  while (done < ids.length) {
    const scored = Math.min(ids.length - done, limit)
    const end = done + scored
    const targets = ids.slice(end - limit, end)
    targets.fill(-1, 0, limit - scored)
    windows.push({ input: ids.slice(end - limit - 1, end - 1), targets })
    done = end
  }
  return windows
}
