import { assert, it } from "@effect/vitest"
import { certainAnswer, finalAnswer } from "../../src/inference/AnswerText.ts"
import { humanMarker } from "../../src/inference/GuanacoPrompt.ts"

it("shows what is certain, and ends at the human's marker", () => {
  const steps: ReadonlyArray<readonly [string, string, boolean]> = [
    [" It", "It", false],
    [" It runs. ", "It runs.", false],
    [" It runs. #", "It runs.", false],
    [" It runs. ###", "It runs.", false],
    [" It runs. ### Hum", "It runs.", false],
    [" It runs. ### Human: and", "It runs.", true]
  ]
  for (const [text, answer, ended] of steps)
    assert.deepStrictEqual(certainAnswer(text, humanMarker), { answer, ended }, text)
})

it("lets a marker's beginning pass once it is none", () => {
  assert.strictEqual(certainAnswer("use ### Headings", humanMarker).answer, "use ### Headings")
  assert.strictEqual(finalAnswer("ends with ###", humanMarker), "ends with ###")
  assert.strictEqual(finalAnswer(" a\n### Human: b### Human: c", humanMarker), "a")
})

it("waits for the rest of a character", () => {
  assert.strictEqual(certainAnswer("tea \uFFFD\uFFFD", humanMarker).answer, "tea")
  assert.strictEqual(certainAnswer("tea ☕", humanMarker).answer, "tea ☕")
  assert.strictEqual(finalAnswer("tea \uFFFD", humanMarker), "tea \uFFFD")
})

it("only ever grows", () => {
  const text = " One ### two #\n\n three ☕ ### Human: four"
  let shown = ""
  for (let length = 0; length <= text.length; length++) {
    const { answer } = certainAnswer(text.slice(0, length), humanMarker)
    assert.isTrue(answer.startsWith(shown), `${JSON.stringify(shown)} then ${JSON.stringify(answer)}`)
    shown = answer
  }
  assert.strictEqual(shown, finalAnswer(text, humanMarker))
})
