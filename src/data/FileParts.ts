/** A list of files cut into parts, each of which any process can work on alone: how many processes there are cannot be seen in what they make. */

/** Files [first, end) of the list. */
export interface FilePart {
  readonly index: number
  readonly first: number
  readonly end: number
  readonly bytes: number
}

/** Files in order, a part for every `leastBytes` of them; a part ends with a file. */
export const partsOfFiles = (
  files: ReadonlyArray<{ readonly bytes: number }>,
  leastBytes: number
): ReadonlyArray<FilePart> => {
  const parts: Array<FilePart> = []
  let first = 0
  let bytes = 0
  for (const [index, file] of files.entries()) {
    bytes += file.bytes
    if (bytes < leastBytes && index + 1 < files.length) continue
    parts.push({ index: parts.length, first, end: index + 1, bytes })
    first = index + 1
    bytes = 0
  }
  return parts
}
