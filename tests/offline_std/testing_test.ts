// What the stand-in for @std/testing/bdd promises. Where JSR can be reached,
// the same assertions run against the real package.
import { assertEquals } from "@std/assert";
import { afterAll, beforeAll, describe, it } from "@std/testing/bdd";

const order: string[] = [];

describe("describe()", () => {
  beforeAll(() => void order.push("before"));
  afterAll(() => {
    order.push("after");
    assertEquals(order, ["before", "first", "inner", "last", "after"]);
  });
  it("runs the first test", () => void order.push("first"));
  describe("with a group inside", () => {
    it("runs its tests in place", async () => {
      await Promise.resolve();
      order.push("inner");
    });
  });
  it({
    name: "leaves out what is ignored",
    ignore: true,
    fn: () => void order.push("ignored"),
  });
  it("runs the last test", () => void order.push("last"));
});
