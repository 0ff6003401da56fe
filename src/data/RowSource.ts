/** What every reader of documents gives, whatever the format: rows, in batches, with where each begins and where reading would go on. */

/** An object or a list: it equals nothing. */
export const compound = Symbol("compound")

/** A field's value, as filters compare it. undefined: the row has no such field. */
export type FieldValue = string | number | boolean | null | undefined | typeof compound

/** Why a row gives no text. The names are counted in the facts. */
export type BadReason =
  | "not_json"
  | "not_an_object"
  | "missing_field"
  | "not_text"
  | "row_too_long"
  | "broken_file"
  | "invalid_utf8"

export interface Bad {
  readonly reason: BadReason
  /** Goes behind the place: "a.jsonl:7: …". */
  readonly message: string
  readonly next: string
}

/** A position between rows. `offset` counts bytes of the text (after decompression), 0 for columnar formats; `row` counts from 1. */
export interface Position {
  readonly offset: number
  readonly row: number
}

/** Views are valid until the next batch is asked for. */
export interface SourceRow extends Position {
  readonly next: Position
  /** Absent where `bad` says why. */
  readonly text?: Uint8Array
  readonly bad?: Bad
  /** Offset in the row of the first byte that is not UTF-8, -1 for none; undefined: not looked for yet. */
  readonly invalidAt?: number
  /** The text had half of a surrogate pair; U+FFFD stands for it. */
  readonly loneSurrogate: boolean
  /** Characters of the text, where they are counted already. */
  readonly characters?: number
  /** The value of filter field number `index`. */
  readonly field: (index: number) => FieldValue
  /** The row's first bytes, to tell what it is. */
  readonly head: () => Uint8Array
  /** The names of the row's fields, where rows have names of their own. */
  readonly names?: () => ReadonlyArray<string>
}

export interface RowBatch {
  readonly rows: ReadonlyArray<SourceRow>
  /** Where all texts lie, if in one place: it stays as it is until the batch after the next is asked for. */
  readonly arena?: Uint8Array
  /** Bytes of the file that this and all before took. */
  readonly consumed: number
}

/** Which fields to look for: a dotted path leads into objects. */
export interface Fields {
  readonly text: string
  /** Those that filters ask for. */
  readonly filters: ReadonlyArray<string>
}

/** Bytes of a bad row that are kept to tell what it is. */
export const headBytes = 200
