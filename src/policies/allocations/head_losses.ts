/**
 * What a model loses by compressing one head at a time, as measured on some
 * text by `measureHeadLosses` of `@steadykv/steadykv/evaluate`. A plain object:
 * `JSON.stringify` writes it, {@linkcode checkHeadLosses} checks what was read.
 */
export interface HeadLosses {
  /** Slots that a head was compressed to, rising. */
  readonly budgets: readonly number[];
  /** Tokens of each text, above the largest of the budgets. */
  readonly tokens: number;
  /**
   * `(layers, kvHeads, budgets)`: KL divergence in nats per token from the
   * model with the full cache, when this head alone has so many slots and all
   * others keep everything.
   */
  readonly loss: readonly (readonly (readonly number[])[])[];
}

/**
 * Checks losses that come from JSON.
 *
 * @param losses What was parsed.
 * @param from What the message calls it, such as the path of a file.
 * @returns The same object.
 * @throws {TypeError} If it is not of the shape of {@linkcode HeadLosses}, or a
 * number is out of range, naming the field.
 */
export function checkHeadLosses(losses: unknown, from: string): HeadLosses {
  return inspectHeadLosses(losses, (fault) => {
    throw new TypeError(`Cannot use the losses of ${from}: ${fault}`);
  });
}

/**
 * Hands the first fault of losses that come from JSON, naming the field, to
 * `reject`.
 *
 * @returns The same object.
 */
export function inspectHeadLosses(
  losses: unknown,
  reject: (fault: string) => never,
): HeadLosses {
  const fail = (field: string, found: unknown, expected: string): never =>
    reject(
      `${field} is ${JSON.stringify(found) ?? "missing"}: expected ${expected}`,
    );
  const { budgets, tokens, loss } = (losses ?? {}) as Record<string, unknown>;
  const isSlots = (x: unknown): x is number => Number.isSafeInteger(x);
  if (!Array.isArray(budgets) || budgets.length === 0) {
    return fail("budgets", budgets, "at least one number of slots");
  }
  budgets.forEach((slots: unknown, i) => {
    const least = i === 0 ? 1 : Number(budgets[i - 1]) + 1;
    if (!isSlots(slots) || slots < least) {
      fail(`budgets[${i}]`, slots, `a whole number of at least ${least}`);
    }
  });
  const largest = Number(budgets.at(-1));
  if (!isSlots(tokens) || tokens <= largest) {
    fail("tokens", tokens, `a whole number above ${largest}`);
  }
  const list = (field: string, value: unknown, length?: number) => {
    if (
      Array.isArray(value) && value.length > 0 &&
      value.length === (length ?? value.length)
    ) return value as unknown[];
    const count = Array.isArray(value) ? `${value.length} entries` : undefined;
    return fail(
      field,
      count ?? value,
      `a list of ${length ?? "some"} entries`,
    );
  };
  const layers = list("loss", loss);
  const kvHeads = list("loss[0]", layers[0]).length;
  layers.forEach((layer, l) =>
    list(`loss[${l}]`, layer, kvHeads).forEach((head, h) =>
      list(`loss[${l}][${h}]`, head, budgets.length).forEach((value, i) => {
        if (typeof value === "number" && Number.isFinite(value)) return;
        fail(`loss[${l}][${h}][${i}]`, value, "a number of nats");
      })
    )
  );
  return losses as HeadLosses;
}
