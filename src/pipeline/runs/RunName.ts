/** Run folders' names: the minute, so that they sort, and two words, so that they can be said. */

const adjectives =
  "amber bold brave bright calm clever crisp dry eager fair fast fine firm fond free fresh gentle glad golden grand green happy keen kind late light lively lone lucky mellow mild neat new noble old pale plain proud pure quick quiet rare red rich ripe rosy round royal sharp shy silent silver sleek slow small smart soft solid sound spare stark still strong sunny sure sweet swift tall tame tidy true vast warm wide wild wise young".split(
    " "
  )
const nouns =
  "acorn ash badger bay beech birch bison brook canyon cedar cliff cloud coast comet coral crane creek crow dawn deer delta dove dune eagle ember falcon fern field finch fir fjord flint forest fox frost gale garden glade gull harbor hare hawk hazel heron hill island ivy jay lagoon lake lark leaf lily lynx maple marsh meadow mesa moon moss moth oak ocean orchid otter owl pebble pine plover pond poppy prairie quail rain raven reef ridge river robin sage seal shore sky snow sparrow spring spruce star stone stork stream summit swan thrush tide trail tulip valley wave willow wind wolf wren".split(
    " "
  )

/** "2026-11-23-1547-quiet-otter", in local time; `random` is in [0, 1). */
export const runName = (at: Date, random: () => number): string => {
  const two = (value: number) => String(value).padStart(2, "0")
  const date = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`
  const pick = (words: ReadonlyArray<string>) => words[Math.floor(random() * words.length)] ?? "plain"
  return `${date}-${two(at.getHours())}${two(at.getMinutes())}-${pick(adjectives)}-${pick(nouns)}`
}
