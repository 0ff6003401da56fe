/**
 * The canonical form of a pipeline file: two spaces, keys of the file and of stages in a fixed order, lines within 160 columns, one blank line at
 * most. Comments, anchors, quotes and the spelling of numbers stay. What comes out is decoded again: a form that means anything else is refused.
 */
import { Effect, Result, Schema } from "effect"
import { type Document, isCollection, isMap, isNode, isScalar, Lexer, parseDocument, visit, type YAMLMap } from "yaml"
import { canonicalJson } from "../../artifacts/CanonicalJson.ts"
import { stageFields, topLevelFields } from "./Overlay.ts"
import { loadPipelineText } from "./Pipeline.ts"
import { settingsDigest } from "./Settings.ts"
import { parseYaml, Source, toJson } from "./YamlSource.ts"

/** Columns; what is written in braces or brackets and does not fit is written as a block. */
const WIDTH = 160

/** The formatted text would not mean what the file means, or lack a comment: a fault of the formatter. The file is left as it is. Exit code 1. */
export class FormatRefused extends Schema.TaggedError<FormatRefused>()("FormatRefused", { file: Schema.String }) {
  readonly next = "leave it as it is, and report the file: the formatter is at fault, not you"
  override get message(): string {
    return `${this.file}: formatting would change what the file means or lose a comment, so nothing was written`
  }
}

/** The canonical form of a file that decodes; fails with PipelineInvalid where it does not. `file` and `baseDirectory` are for messages. */
export const formatPipeline = Effect.fn("formatPipeline")(function* (input: {
  readonly file: string
  readonly text: string
  readonly baseDirectory: string
}) {
  yield* loadPipelineText({ label: input.file, ...input })
  const wanted = yield* meaning(input)
  for (const reorder of [true, false]) {
    // Moving a key may bring an alias in front of its anchor: then the order stays.
    const text = canonicalText(input.text, reorder)
    if (text === undefined || comments(text) !== comments(input.text)) continue
    if ((yield* meaning({ ...input, text })) === wanted) return text
  }
  return yield* new FormatRefused({ file: input.file })
})

/** The file's values, and what it decodes to without profiles and with each of them, the order of stages too, as one text. */
const meaning = Effect.fnUntraced(function* (input: {
  readonly file: string
  readonly text: string
  readonly baseDirectory: string
}) {
  const { diagnostics, root } = parseYaml(new Source("file", input.file, input.text))
  if (root === undefined || diagnostics.length > 0) return undefined
  const profiles = root._tag === "mapping" ? root.entries.get("profiles")?.value : undefined
  const names = profiles?._tag === "mapping" ? Array.from(profiles.entries.keys()) : []
  const decoded = yield* Effect.forEach([[], ...names.map((name) => [name])], (profiles) =>
    Effect.map(Effect.result(loadPipelineText({ label: input.file, ...input, profiles })), (result) =>
      Result.isSuccess(result)
        ? [settingsDigest(result.success), ...result.success.stages.map(({ name }) => name)].join(" ")
        : "invalid"
    )
  )
  return [canonicalJson(toJson(root)), ...decoded].join("\n")
})

/** Every comment, sorted: they may move along with the keys below them. */
const comments = (text: string): string => {
  const tokens = Array.from(new Lexer().lex(text))
  const found = tokens.filter((token, index) => token.startsWith("#") && tokens[index - 1] !== scalarMark)
  return found
    .map((comment) => comment.trim())
    .sort()
    .join("\n")
}

/** Undefined where the text is not YAML, or does not settle. */
export const canonicalText = (text: string, reorder: boolean): string | undefined => {
  // In the failsafe schema every scalar is a text, so each is written as it was read.
  const parse = (source: string) => parseDocument(source, { schema: "failsafe", uniqueKeys: false })
  let document: Document.Parsed = parse(text)
  if (document.errors.length > 0) return undefined
  if (reorder) orderKeys(document)
  let printed = print(document)
  // What is too long opens from the outside in, one level each turn; and comments settle: done when a turn changes nothing.
  for (let turn = 0; turn < MOST_TURNS; turn++) {
    document = parse(printed)
    openWide(document, printed)
    const next = print(document)
    if (next === printed) return printed
    printed = next
  }
  return undefined
}

/** Far more than any file is deep. */
const MOST_TURNS = 100

const print = (document: Document.Parsed): string => {
  visit(document, {
    // no blank line above a block's first line
    Collection: (_, node) => {
      const first: unknown = isMap(node) ? node.items[0]?.key : node.items[0]
      if (isNode(first)) first.spaceBefore = false
    }
  })
  // An alias may stand before its anchor here: whoever reorders keys finds that out by decoding.
  return tighten(document.toString({ lineWidth: 0, verifyAliasOrder: false })).replace(/^\n+/u, "")
}

/** What the lexer sets before a scalar; and with it all that it adds to the text. */
const scalarMark = "\u001f"
const lexerMarks = ["\u0002", "\u0018", scalarMark]

/** [ a, b ] → [a, b], braces keep their spaces; and of several blank lines one. */
const tighten = (text: string): string => {
  const tokens = Array.from(new Lexer().lex(text))
  return tokens
    .filter((token, index) => {
      const [before, after] = [tokens[index - 1], tokens[index + 1]]
      if (lexerMarks.includes(token)) return false
      if (before === scalarMark) return true
      if (token === "\n") return before !== "\n" || tokens[index - 2] !== "\n"
      if (!/^ +$/u.test(token)) return true
      const opens = before === "[" && !after?.startsWith("#")
      const closes = after === "]" && before !== "\n"
      return !opens && !closes
    })
    .join("")
}

/** Writes as blocks the outermost collections in brackets or braces that run over the width or over several lines. */
const openWide = (document: Document.Parsed, text: string): void => {
  visit(document, {
    Collection: (_, node) => {
      if (node.flow !== true || !isCollection(node) || !node.range) return undefined
      const [start, end] = node.range
      const lineStart = text.lastIndexOf("\n", start - 1) + 1
      const wide = text.slice(start, end).includes("\n") || end - lineStart > WIDTH
      if (wide && node.items.length > 0) node.flow = false
      return visit.SKIP
    }
  })
}

const orderKeys = (document: Document.Parsed): void => {
  const root: unknown = document.contents
  if (!isMap(root)) return
  order(root, topLevelFields, true)
  const profiles = root.get("profiles")
  const inProfiles = isMap(profiles) ? profiles.items.map(({ value }) => value).filter(isMap) : []
  for (const profile of inProfiles) order(profile, topLevelFields, false)
  for (const holder of [root, ...inProfiles]) {
    const stages = holder.get("stages")
    for (const { value } of isMap(stages) ? stages.items : []) if (isMap(value)) order(value, stageFields, false)
  }
}

/** Sorts a mapping by `keys`, comments along with the key below them; the file's own head comment stays at the top. */
const order = (map: YAMLMap, keys: ReadonlyArray<string>, isRoot: boolean): void => {
  const rank = (key: unknown): number => {
    const found = keys.indexOf(isScalar(key) ? String(key.value) : "")
    return found < 0 ? keys.length : found
  }
  const sorted = map.items.toSorted((a, b) => rank(a.key) - rank(b.key))
  if (sorted.every((pair, index) => pair === map.items[index])) return
  const before = map.items[0]?.key
  if (!isRoot && map.commentBefore && isScalar(before)) {
    before.commentBefore = map.commentBefore
    map.commentBefore = null
  }
  map.items = sorted
}
