/** What a plugin stage imports, as "tinyllama/stage": the definition's types and makers, its two failures, and writes that survive a crash. */
export { writeFileAtomic, writeJsonAtomic } from "./artifacts/DurableFile.ts"
export { countIn } from "./artifacts/Artifact.ts"
export type { ArtifactHandle, ArtifactType, Facts } from "./artifacts/Artifact.ts"
export { defineStage, parameter, Preempted, ShareDone, StageError } from "./pipeline/StageType.ts"
export type {
  AnyStageType,
  Change,
  ChangeClass,
  ChangeRule,
  Decoded,
  Extent,
  FailureClass,
  Forecast,
  InputHandles,
  InputPort,
  OutputPort,
  Parameter,
  Parameters,
  Previous,
  Progress,
  Ranks,
  StageContext,
  StageServices,
  StageType
} from "./pipeline/StageType.ts"
