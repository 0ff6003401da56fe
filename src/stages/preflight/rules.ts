/** What the program knows of its own stages before they run: one small rule a file. */
import type { Rule } from "../../pipeline/plan/Preflight.ts"
import { batch } from "./Batch.ts"
import { budget } from "./Budget.ts"
import * as ContextLength from "./ContextLength.ts"
import { documentMask } from "./DocumentMask.ts"
import { gpuMemory } from "./GpuMemory.ts"
import { access, retries } from "./Sources.ts"
import { tokenizers, vocabulary } from "./Vocabulary.ts"

export const rules: ReadonlyArray<Rule> = [
  budget,
  vocabulary,
  tokenizers,
  ContextLength.pretraining,
  ContextLength.fineTuning,
  batch,
  documentMask,
  gpuMemory,
  retries,
  access
]
