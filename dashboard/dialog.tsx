// A button whose action is confirmed in a dialog.
import type { ComponentChildren, JSX } from "preact";
import { useId, useLayoutEffect, useRef, useState } from "preact/hooks";

export interface ActionProps {
  /** What it does: `Close the tunnel`. */
  readonly title: string;
  readonly run: () => Promise<unknown>;
  /** Called after it has succeeded. */
  readonly done?: () => void;
  /** Whether it closes nothing. */
  readonly isHarmless?: boolean;
  /** What will happen. */
  readonly children: ComponentChildren;
}

export function ActionButton(props: ActionProps): JSX.Element {
  /** Which dialog is open, counted from 1: a key may open the next one before the browser reports the end of the last. */
  const [open, setOpen] = useState<number>();
  const count = useRef(0);
  return (
    <>
      <button type="button" class={classOf(props)} onClick={() => setOpen(++count.current)}>{props.title}…</button>
      {open && <Confirmation key={open} {...props} close={() => setOpen((now) => now === open ? undefined : now)} />}
    </>
  );
}

const classOf = ({ isHarmless }: ActionProps): string => isHarmless ? "" : "danger";

function Confirmation({ close, ...action }: ActionProps & { close: () => void }): JSX.Element {
  const { title, run, done, children } = action;
  const dialog = useRef<HTMLDialogElement>(null);
  const id = useId();
  const [isRunning, setRunning] = useState(false);
  const [error, setError] = useState<string>();
  useLayoutEffect(() => dialog.current!.showModal(), []);
  const confirm = async () => {
    setRunning(true);
    try {
      await run();
      dialog.current!.close(); // the focus returns to the button
      done?.();
    } catch (error) {
      setRunning(false);
      setError((error as Error).message);
    }
  };
  return (
    <dialog ref={dialog} onClose={close} aria-labelledby={id}>
      <h2 id={id}>{title}?</h2>
      {children}
      {error !== undefined && <p role="alert" class="error">{error}</p>}
      <div class="buttons">
        <button type="button" autofocus onClick={() => dialog.current!.close()}>Cancel</button>
        <button type="button" class={classOf(action)} disabled={isRunning} onClick={() => void confirm()}>{title}</button>
      </div>
    </dialog>
  );
}
