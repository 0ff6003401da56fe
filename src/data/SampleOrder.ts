/**
 * The order of samples as a function, not a list: a global sample index and a seed give the block to read. Nothing is stored, any index is
 * reached at once, and ranks that stride over the same index cover each block once per epoch, whatever their number.
 *
 * epoch = floor(index / blocks), position = index mod blocks; block = permutation of [0, blocks) keyed by (seed, epoch), at position.
 * The permutation is a balanced Feistel network of eight rounds on 2h bits, 4^h the least power of 4 that is at least `blocks` (h ≥ 1), with
 * cycle walking: a result outside [0, blocks) goes in again (Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002). A round
 * replaces (left, right) by (right, left xor (mix(right xor key of the round) mod 2^h)); mix is the 32-bit finalizer of MurmurHash3. All
 * of it is 32-bit integer arithmetic, so that native code can follow it bit for bit.
 */
const rounds = 8

/** MurmurHash3's fmix32: a bijection of 32-bit integers whose every output bit depends on every input bit. */
const mix = (value: number): number => {
  let h = value >>> 0
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b)
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35)
  return (h ^ (h >>> 16)) >>> 0
}

const roundKeys = (seed: number, epoch: number): Uint32Array => {
  const words = [seed % 2 ** 32, Math.floor(seed / 2 ** 32), epoch % 2 ** 32, Math.floor(epoch / 2 ** 32)]
  const state = words.reduce((hash, word) => mix((Math.imul(hash, 0x9e3779b1) + word) >>> 0), 0x6a09e667)
  return Uint32Array.from({ length: rounds }, (_, round) => mix((state + Math.imul(round + 1, 0x9e3779b9)) >>> 0))
}

const halfBits = (size: number): number => {
  let h = 1
  while (4 ** h < size) h++
  return h
}

/** The permutation of [0, size) under (seed, epoch), as a function of the position. All are integers from 0 to 2^53 - 1. */
export const permutation = (size: number, seed: number, epoch: number): ((position: number) => number) => {
  const keys = roundKeys(seed, epoch)
  const modulus = 2 ** halfBits(size)
  const mask = modulus - 1
  return (position) => {
    let value = position
    do {
      let left = Math.floor(value / modulus)
      let right = value % modulus
      for (let round = 0; round < rounds; round++) {
        const next = (left ^ (mix(right ^ (keys[round] ?? 0)) & mask)) >>> 0
        left = right
        right = next
      }
      value = left * modulus + right
    } while (value >= size)
    return value
  }
}

/** The block of the global sample `index` (0 to 2^53 - 1) among `blocks`; every `blocks` samples make an epoch with an order of its own. */
export const sampleAt = (index: number, blocks: number, seed: number): number => {
  if (!Number.isSafeInteger(index) || index < 0 || !Number.isSafeInteger(blocks) || blocks < 1)
    throw new RangeError(`no sample ${index} of ${blocks} blocks`)
  return permutation(blocks, seed, Math.floor(index / blocks))(index % blocks)
}
