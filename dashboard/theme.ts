// Dark and light: as the system says, until the user chooses. The choice is kept in the browser.
import { useEffect, useState } from "preact/hooks";

export type Theme = "dark" | "light";

const KEY = "theme";
const CHANGED = "themechange";

function current(): Theme {
  const chosen = localStorage.getItem(KEY);
  if (chosen === "dark" || chosen === "light") return chosen;
  return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

/** Applies the theme to the page, now and when the system's changes. */
export function followTheme(): void {
  const apply = () => {
    document.documentElement.dataset.theme = current();
    dispatchEvent(new Event(CHANGED));
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", apply);
  apply();
}

export function chooseTheme(theme: Theme): void {
  localStorage.setItem(KEY, theme);
  document.documentElement.dataset.theme = theme;
  dispatchEvent(new Event(CHANGED));
}

export function useTheme(): Theme {
  const [theme, setTheme] = useState(current);
  useEffect(() => {
    const changed = () => setTheme(current());
    addEventListener(CHANGED, changed);
    return () => removeEventListener(CHANGED, changed);
  }, []);
  return theme;
}
