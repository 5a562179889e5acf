/**
 * The words that retrieval tasks are made of. Each name is an adjective and a
 * noun, so that a few words give thousands of names.
 *
 * @module
 */

/** What is asked for. */
export const ATTRIBUTES = [
  "access code",
  "magic number",
  "room number",
  "serial number",
] as const;

/** First words of names. */
export const ADJECTIVES = [
  ..."amber ancient autumn bitter bold brave bright calm clever cold".split(
    " ",
  ),
  ..."copper coral crimson crystal distant eager frozen gentle golden".split(
    " ",
  ),
  ..."green hidden hollow humble iron ivory jolly lonely lunar marble".split(
    " ",
  ),
  ..."mellow misty narrow noble olive pale polar proud purple quiet".split(" "),
  ..."rapid royal rustic sandy scarlet silent silver smooth solar".split(" "),
  ..."steady stone swift tall velvet violet warm western wild wooden".split(
    " ",
  ),
] as const;

/** Second words of names. */
export const NOUNS = [
  ..."anchor arrow badger bamboo beacon bison boat bridge canyon castle".split(
    " ",
  ),
  ..."cedar cellar cherry clover comet crane crow desert dolphin drum".split(
    " ",
  ),
  ..."falcon fern finch forest garden glacier hammer harbor hawk heron".split(
    " ",
  ),
  ..."island jaguar kettle ladder lantern lark lion lynx maple market".split(
    " ",
  ),
  ..."meadow mirror orchard otter pearl pepper quarry rabbit raven reef".split(
    " ",
  ),
  ..."river sailor sparrow spider temple thunder tiger tulip valley".split(" "),
  ..."violin walnut willow".split(" "),
] as const;
