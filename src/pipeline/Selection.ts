/** Which stages a command asks for. */
export interface Selection {
  /** Reruns this stage and all below; upstream, the newest complete artifacts serve, whatever the file now says of them. */
  readonly fromStage?: string
  /** Nothing below this stage. */
  readonly toStage?: string
  /** These stages alone; upstream as with `fromStage`. */
  readonly only?: ReadonlyArray<string>
  /** Rerun even if a complete result exists; "all" stands for every selected stage. */
  readonly force?: ReadonlyArray<string>
}
