import { assertEquals } from "@std/assert";
import { parseBudget } from "../../src/policies/parse_budget.ts";

Deno.test("parseBudget() reads slots, shares and memory", () => {
  assertEquals(parseBudget("256"), 256);
  assertEquals(parseBudget("10%"), { ratio: 0.1 });
  assertEquals(parseBudget("12.5 %"), { ratio: 0.125 });
  assertEquals(parseBudget("100%"), { ratio: 1 });
  assertEquals(parseBudget("64MiB"), { bytes: 67_108_864 });
  assertEquals(parseBudget("64MB"), { bytes: 64_000_000 });
  assertEquals(parseBudget("1.5GiB"), { bytes: 1_610_612_736 });
  assertEquals(parseBudget("2gb"), { bytes: 2_000_000_000 });
  assertEquals(parseBudget("1KiB"), { bytes: 1024 });
  assertEquals(parseBudget("1kB"), { bytes: 1000 });
  assertEquals(parseBudget("4096 B"), { bytes: 4096 });
});

Deno.test("parseBudget() rejects everything else", () => {
  for (
    const text of [
      ...["", "0", "-5", "2.5", "1e3", "0x10", "ten", "99999999999999999"],
      ...["0%", "101%", "%", "10%%", "0MiB", "64M", "64 iB", "64TiB", "MiB"],
    ]
  ) assertEquals(parseBudget(text), undefined, text);
});
