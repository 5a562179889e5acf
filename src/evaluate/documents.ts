/**
 * The texts of an evaluation: one JSON document a line.
 *
 * @module
 */
import * as v from "valibot";
import {
  checkFields,
  EvaluationFormatError,
  parseJsonAt,
} from "./format_error.ts";
import { hashText } from "./random.ts";

/** A text that the model was not trained on. */
export interface EvaluationDocument {
  /** Where it comes from, such as `postgresql-doc`. */
  readonly source: string;
  /** Its name there. */
  readonly name: string;
  /** The text. */
  readonly text: string;
}

/**
 * The two halves of a set of documents: parameters are chosen on `tune`,
 * numbers are reported on `report`.
 */
export type Half = "tune" | "report";

const DocumentSchema = v.object({
  source: v.string("a string"),
  name: v.string("a string"),
  text: v.pipe(v.string("a string"), v.nonEmpty("a text")),
}, "an object");

/**
 * Loads documents from a file with one `{ source, name, text }` a line.
 *
 * @throws {EvaluationFormatError} If the file is missing or a line is not a
 * document, naming the line and the field.
 */
export async function loadDocuments(
  path: string,
): Promise<EvaluationDocument[]> {
  let text: string;
  try {
    text = await Deno.readTextFile(path);
  } catch (cause) {
    if (!(cause instanceof Deno.errors.NotFound)) throw cause;
    throw new EvaluationFormatError(path, "there is no such file", { cause });
  }
  return parseDocuments(text, path);
}

/**
 * Parses the text of a file of documents; empty lines are passed over.
 *
 * @throws {EvaluationFormatError} If a line is not a document, two documents
 * have one name, or there is none.
 */
export function parseDocuments(
  text: string,
  file: string,
): EvaluationDocument[] {
  const lines = new Map<string, number>();
  const documents: EvaluationDocument[] = [];
  for (const [index, line] of text.split("\n").entries()) {
    if (line.trim() === "") continue;
    const at = { file, place: `line ${index + 1}` };
    const document = checkFields(DocumentSchema, parseJsonAt(line, at), at);
    const id = documentId(document);
    if (lines.has(id)) {
      throw new EvaluationFormatError(
        file,
        `line ${index + 1}: the document ${id} is also in line ${
          lines.get(id)
        }, expected names that are unique within a source`,
      );
    }
    lines.set(id, index + 1);
    documents.push(document);
  }
  if (documents.length === 0) {
    throw new EvaluationFormatError(
      file,
      "there is no document, expected at least one line",
    );
  }
  return documents;
}

/** `source/name`, which tells documents apart. */
export function documentId({ source, name }: EvaluationDocument): string {
  return `${source}/${name}`;
}

/**
 * The half that a document belongs to. It follows from the name alone, so it
 * stays the same when documents are added.
 */
export function halfOf(document: EvaluationDocument): Half {
  return hashText(documentId(document)) % 2 === 0 ? "tune" : "report";
}
