// Which rows of a long table are in view. The table has rows of one height, and draws no others.

/** Rows from `first` to before `end`. */
export interface Range {
  readonly first: number;
  readonly end: number;
}

/** Both ends are multiples of this, so that not every pixel of scrolling changes them. */
const STEP = 10;

/**
 * The rows to draw: those in view and some on each side.
 * @param top pixels from the first row to the top of the view
 * @param height of the view in pixels
 */
export function rowsAround(top: number, height: number, rowHeight: number): Range {
  const first = Math.floor(Math.max(0, top) / rowHeight / STEP) - 1;
  const end = Math.ceil((Math.max(0, top) + height) / rowHeight / STEP) + 1;
  return { first: Math.max(0, first) * STEP, end: end * STEP };
}

/** The part of a range that a table of `total` rows has. */
export function within({ first, end }: Range, total: number): Range {
  return { first: Math.min(first, total), end: Math.min(end, total) };
}
