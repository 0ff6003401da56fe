/** Rules about stages of one type, with its parameters typed as the type declares them. */
import { Effect } from "effect"
import type { Examined, Finding, PreflightContext, Rule } from "../../pipeline/plan/Preflight.ts"
import type { AnyStageType, Decoded } from "../../pipeline/StageType.ts"

export interface ExaminedAs<S extends AnyStageType> extends Omit<Examined, "params"> {
  readonly params: Decoded<S["params"]>
}

/** A cheap rule that looks at every stage of the program's own type `name`; what it says is said of that stage. */
export const stageRule = <S extends AnyStageType>(
  name: string,
  subject: string,
  check: (examined: ExaminedAs<S>, context: PreflightContext) => Verdict | undefined
): Rule => ({
  cost: "cheap",
  check: (context) =>
    Effect.succeed(
      stagesOf<S>(context, name).flatMap((examined): ReadonlyArray<Finding> => {
        const verdict = check(examined, context)
        return verdict === undefined ? [] : [{ subject, stage: examined.stage.name, ...verdict }]
      })
    )
})

export type Verdict = Omit<Finding, "subject" | "stage">

export const stagesOf = <S extends AnyStageType>(context: PreflightContext, name: string) =>
  context.stages
    .filter(({ stage }) => stage.type.name === name && stage.type.plugin === undefined)
    // The program's own type of that name is S: its parameters were decoded by its schemas.
    .map((examined) => examined as ExaminedAs<S>)

export const ok = (detail: string): Verdict => ({ state: "ok", detail })
export const warning = (detail: string, next: string): Verdict => ({ state: "warning", detail, next })
export const missing = (detail: string, next: string): Verdict => ({ state: "missing", detail, next })

/** A fact that counts something. */
export const numberIn = (facts: Examined["inputs"][string][number] | undefined, name: string): number | undefined => {
  const value = facts?.[name]
  return typeof value === "number" ? value : undefined
}

/** "packed.dataset": what an input port is joined to. */
export const originOf = ({ stage }: Pick<Examined, "stage">, port: string): string =>
  (stage.inputs[port] ?? []).map((edge) => `${edge.stage}.${edge.port}`).join(", ")

export const grouped = (value: number): string => value.toLocaleString("en")
