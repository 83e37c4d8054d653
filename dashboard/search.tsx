// The field that searches when the user pauses. The key `/` moves the focus to it.
import type { JSX } from "preact";
import { useEffect, useRef } from "preact/hooks";

interface SearchBoxProps {
  readonly value: string;
  readonly label: string;
  readonly change: (text: string) => void;
}

const PAUSE_MS = 150;

export function SearchBox({ value, label, change }: SearchBoxProps): JSX.Element {
  const input = useRef<HTMLInputElement>(null);
  const timer = useRef<ReturnType<typeof setTimeout> | undefined>(undefined);
  useEffect(() => {
    const pressed = (event: KeyboardEvent) => {
      if (event.key !== "/" || event.target instanceof HTMLInputElement || document.querySelector("dialog[open]")) return;
      event.preventDefault();
      input.current!.focus();
    };
    addEventListener("keydown", pressed);
    return () => {
      removeEventListener("keydown", pressed);
      clearTimeout(timer.current);
    };
  }, []);
  const typed = (text: string) => {
    clearTimeout(timer.current);
    timer.current = setTimeout(() => change(text.trim()), PAUSE_MS);
  };
  return (
    <input
      ref={input}
      type="search"
      aria-label={label}
      aria-keyshortcuts="/"
      placeholder="Search ( / )"
      defaultValue={value}
      onInput={(event) => typed(event.currentTarget.value)}
    />
  );
}
