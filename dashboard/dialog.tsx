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
  const [isOpen, setOpen] = useState(false);
  return (
    <>
      <button type="button" class={classOf(props)} onClick={() => setOpen(true)}>{props.title}…</button>
      {isOpen && <Confirmation {...props} close={() => setOpen(false)} />}
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
