/**
 * YAML with positions: text → a tree whose nodes know where they stand. Built on js-yaml's event stream, since its loader gives plain values
 * and stops at the first error. Only what a configuration needs: YAML 1.2 core scalars, anchors and aliases; no tags but !!str, no merge keys,
 * one document. Differs from the core schema in one point: 400_000 is a number.
 */
import type { Schema } from "effect"
import { type Event, EVENT_ID, getScalarValue, parseEvents, SCALAR_STYLE, YAMLException } from "js-yaml"
import type { Diagnostic } from "./Diagnostics.ts"
import type { Origin } from "./ResolvedPipeline.ts"

/** A stretch of source. `place` says which source: a file name or a command-line option. */
export interface Span {
  readonly source: Source
  readonly start: number
  readonly end: number
}

interface NodeBase {
  readonly span: Span
}
export interface ScalarNode extends NodeBase {
  readonly _tag: "scalar"
  readonly value: string | number | boolean | null
  /** The variable that the value came from, and where that got it. */
  readonly via?: { readonly name: string; readonly span: Span }
}
export interface SequenceNode extends NodeBase {
  readonly _tag: "sequence"
  readonly items: ReadonlyArray<Node>
}
export interface MappingNode extends NodeBase {
  readonly _tag: "mapping"
  readonly entries: ReadonlyMap<string, Entry>
}
export interface Entry {
  readonly key: Span
  readonly value: Node
}
export type Node = ScalarNode | SequenceNode | MappingNode

/** Where text came from, and how places in it are written. */
export class Source {
  readonly text: string
  /** A file's name, or the whole option as it was given. */
  readonly label: string
  readonly kind: "file" | "override"
  #lineStarts: ReadonlyArray<number> | undefined
  constructor(kind: "file" | "override", label: string, text: string) {
    this.kind = kind
    this.label = label
    this.text = text
  }

  /** 1-based. The lines are found once: every value of a large file has its place asked for. */
  position(offset: number): { readonly line: number; readonly column: number } {
    const starts = (this.#lineStarts ??= lineStartsOf(this.text))
    let [low, high] = [0, starts.length]
    while (high - low > 1) {
      const middle = (low + high) >> 1
      if ((starts[middle] ?? 0) <= offset) low = middle
      else high = middle
    }
    return { line: low + 1, column: offset - (starts[low] ?? 0) + 1 }
  }
}

const lineStartsOf = (text: string): ReadonlyArray<number> => {
  const starts = [0]
  for (let at = text.indexOf("\n"); at >= 0; at = text.indexOf("\n", at + 1)) starts.push(at + 1)
  return starts
}

export const position = (span: Span): { readonly line: number; readonly column: number } =>
  span.source.position(span.start)

export const placeOf = (span: Span): string => {
  if (span.source.kind === "override") return span.source.label
  const { column, line } = position(span)
  return `${span.source.label}:${line}:${column}`
}

/** The source's own words, one line of at most 100 characters. */
export const quote = (span: Span): string => {
  const [line = ""] = span.source.text.slice(span.start, span.end).split("\n", 1)
  return line.length > 100 ? `${line.slice(0, 100)}…` : line
}

export const diagnose = (
  span: Span,
  path: string,
  message: string,
  options?: { readonly suggestion?: string | undefined; readonly text?: string }
): Diagnostic => {
  const text = options?.text ?? quote(span)
  return {
    place: placeOf(span),
    ...(span.source.kind === "file" ? position(span) : {}),
    path,
    message,
    ...(text === "" ? {} : { text }),
    ...(options?.suggestion === undefined ? {} : { suggestion: options.suggestion })
  }
}

export const originOf = (span: Span, profile?: string): Origin =>
  span.source.kind === "override"
    ? { _tag: "Override", place: span.source.label }
    : profile === undefined
      ? { _tag: "File", place: placeOf(span) }
      : { _tag: "Profile", place: placeOf(span), profile }

export const toJson = (node: Node): Schema.Json => {
  switch (node._tag) {
    case "scalar":
      return node.value
    case "sequence":
      return node.items.map(toJson)
    case "mapping":
      return Object.fromEntries(Array.from(node.entries, ([key, entry]) => [key, toJson(entry.value)]))
  }
}

/** The mapping with other values; itself where none changes. */
export const mapEntries = (node: MappingNode, change: (value: Node, key: string) => Node): MappingNode => {
  let entries: Map<string, Entry> | undefined
  for (const [key, entry] of node.entries) {
    const value = change(entry.value, key)
    if (value !== entry.value) entries = (entries ?? new Map(node.entries)).set(key, { ...entry, value })
  }
  return entries === undefined ? node : { ...node, entries }
}

/** The list with other items; itself where none changes. */
export const mapItems = (node: SequenceNode, change: (item: Node, index: number) => Node): SequenceNode => {
  const items = node.items.map(change)
  return items.some((item, index) => item !== node.items[index]) ? { ...node, items } : node
}

/** The deepest node on `path` that exists, and how much of the path leads to it. */
export const nodeAt = (
  root: Node,
  path: ReadonlyArray<PropertyKey>
): { readonly node: Node; readonly depth: number } => {
  let node = root
  for (const [depth, segment] of path.entries()) {
    const next =
      node._tag === "mapping"
        ? node.entries.get(String(segment))?.value
        : node._tag === "sequence"
          ? node.items[Number(segment)]
          : undefined
    if (next === undefined) return { node, depth }
    node = next
  }
  return { node, depth: path.length }
}

export interface Parsed {
  readonly root: Node | undefined
  readonly diagnostics: ReadonlyArray<Diagnostic>
}

export const parseYaml = (source: Source): Parsed => {
  let events: ReadonlyArray<Event>
  try {
    events = parseEvents(source.text, {})
  } catch (error) {
    if (!(error instanceof YAMLException)) throw error
    const at = Math.min(error.mark?.position ?? 0, source.text.length)
    const lineStart = source.text.lastIndexOf("\n", at - 1) + 1
    const text = (source.text.slice(lineStart).split("\n")[0] ?? "").trim()
    return {
      root: undefined,
      diagnostics: [diagnose({ source, start: at, end: at }, "", `not YAML: ${error.reason}`, { text })]
    }
  }
  return new TreeBuilder(source, events).build()
}

/** Walks the events once. Errors are collected; what is wrong is left out of the tree. */
class TreeBuilder {
  readonly #source: Source
  readonly #events: ReadonlyArray<Event>
  readonly #diagnostics: Array<Diagnostic> = []
  readonly #anchors = new Map<string, Node>()
  #next = 0
  /** End of the last thing read: where an empty value stands. */
  #end = 0

  constructor(source: Source, events: ReadonlyArray<Event>) {
    this.#source = source
    this.#events = events
  }

  build(): Parsed {
    const documents = this.#events.filter((event) => event.type === EVENT_ID.DOCUMENT).length
    if (documents !== 1) {
      const second = documents === 0 ? 0 : Math.max(0, this.#source.text.search(/^---/mu))
      const message = documents === 0 ? "the file is empty" : "more than one YAML document"
      return { root: undefined, diagnostics: [diagnose(this.#span(second, second), "", message)] }
    }
    this.#next = 1
    const root = this.#node("")
    return { root, diagnostics: this.#diagnostics }
  }

  #span(start: number, end: number): Span {
    return { source: this.#source, start, end }
  }

  #report(span: Span, path: string, message: string): void {
    this.#diagnostics.push(diagnose(span, path, message))
  }

  #node(path: string): Node {
    const event = this.#events[this.#next++]
    if (event === undefined) return { _tag: "scalar", value: null, span: this.#span(this.#end, this.#end) }
    switch (event.type) {
      case EVENT_ID.ALIAS: {
        const span = this.#span(event.anchorStart - 1, event.anchorEnd)
        this.#end = event.anchorEnd
        const name = this.#source.text.slice(event.anchorStart, event.anchorEnd)
        const node = this.#anchors.get(name)
        if (node !== undefined) return node
        this.#report(span, path, `no anchor "&${name}" above`)
        return { _tag: "scalar", value: null, span }
      }
      case EVENT_ID.SCALAR:
        return this.#anchored(event, this.#scalar(event, path))
      case EVENT_ID.SEQUENCE: {
        this.#tag(event, path)
        const items: Array<Node> = []
        this.#end = event.start
        while (!this.#closes()) items.push(this.#node(`${path}[${items.length}]`))
        return this.#anchored(event, { _tag: "sequence", items, span: this.#span(event.start, this.#end) })
      }
      case EVENT_ID.MAPPING: {
        this.#tag(event, path)
        const entries = new Map<string, Entry>()
        this.#end = event.start
        while (!this.#closes()) this.#entry(path, entries)
        return this.#anchored(event, { _tag: "mapping", entries, span: this.#span(event.start, this.#end) })
      }
      default:
        return { _tag: "scalar", value: null, span: this.#span(this.#end, this.#end) }
    }
  }

  #closes(): boolean {
    if (this.#events[this.#next]?.type !== EVENT_ID.POP) return false
    this.#next++
    return true
  }

  #entry(path: string, entries: Map<string, Entry>): void {
    const event = this.#events[this.#next]
    const keyNode = this.#node(path)
    if (event?.type !== EVENT_ID.SCALAR) {
      this.#report(keyNode.span, path, "a key must be plain text")
      this.#node(path)
      return
    }
    const key = getScalarValue(this.#source.text, event)
    const inner = path === "" ? key : `${path}.${key}`
    const value = this.#node(inner)
    const before = entries.get(key)
    if (before === undefined) entries.set(key, { key: keyNode.span, value })
    else this.#report(keyNode.span, inner, `duplicate key, first given in line ${position(before.key).line}`)
  }

  #anchored(event: { readonly anchorStart: number; readonly anchorEnd: number }, node: Node): Node {
    if (event.anchorStart >= 0) this.#anchors.set(this.#source.text.slice(event.anchorStart, event.anchorEnd), node)
    return node
  }

  /** The explicit tag, if it may stand there. */
  #tag(event: { readonly tagStart: number; readonly tagEnd: number }, path: string): string | undefined {
    if (event.tagStart < 0) return undefined
    const tag = this.#source.text.slice(event.tagStart, event.tagEnd)
    if (tag !== "!!str")
      this.#report(this.#span(event.tagStart, event.tagEnd), path, `the tag ${tag} has no meaning here`)
    return tag
  }

  #scalar(event: Extract<Event, { readonly type: typeof EVENT_ID.SCALAR }>, path: string): ScalarNode {
    const text = getScalarValue(this.#source.text, event)
    const tag = this.#tag(event, path)
    const quoted = event.style === SCALAR_STYLE.DOUBLE_QUOTED || event.style === SCALAR_STYLE.SINGLE_QUOTED ? 1 : 0
    const span =
      event.valueStart < 0
        ? this.#span(this.#end, this.#end)
        : this.#span(event.valueStart - quoted, event.valueEnd + quoted)
    this.#end = span.end
    if (tag === "!!str" || event.style !== SCALAR_STYLE.PLAIN) return { _tag: "scalar", value: text, span }
    const value = resolvePlain(text)
    if (typeof value === "number" && !Number.isFinite(value)) {
      this.#report(span, path, "not a finite number")
      return { _tag: "scalar", value: null, span }
    }
    return { _tag: "scalar", value: Object.is(value, -0) ? 0 : value, span }
  }
}

/** YAML 1.2.2, section 10.3.2, "core schema: tag resolution"; and digits grouped in threes by "_". */
const resolvePlain = (text: string): string | number | boolean | null => {
  if (/^(?:null|Null|NULL|~|)$/u.test(text)) return null
  if (/^(?:true|True|TRUE)$/u.test(text)) return true
  if (/^(?:false|False|FALSE)$/u.test(text)) return false
  if (/^0o[0-7]+$/u.test(text) || /^0x[0-9a-fA-F]+$/u.test(text)) return Number(text)
  if (/^[-+]?\d{1,3}(?:_\d{3})+$/u.test(text)) return Number(text.replaceAll("_", ""))
  if (/^[-+]?(?:\.\d+|\d+(?:\.\d*)?)(?:[eE][-+]?\d+)?$/u.test(text)) return Number(text)
  if (/^[-+]?\.(?:inf|Inf|INF)$/u.test(text)) return text.startsWith("-") ? -Infinity : Infinity
  if (/^\.(?:nan|NaN|NAN)$/u.test(text)) return Number.NaN
  return text
}
