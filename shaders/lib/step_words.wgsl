// Words of a chunk and of the state of a sequence: see ChunkWord and StateWord.

const CHUNK_SEQUENCE = 0u;
const CHUNK_ROWS = 1u;
const CHUNK_POSITION = 2u;
const CHUNK_GUESTS = 3u;

const STATE_POSITION = 0u;
const STATE_FINISHED = 1u;
const STATE_PRODUCED = 2u;
const STATE_LIMIT = 3u;
const STATE_SEED_LOW = 4u;
const STATE_SEED_HIGH = 5u;
const STATE_WORDS = 8u;
