// The form that asks for the token.
import type { JSX } from "preact";
import { useRef } from "preact/hooks";
import { visible } from "./format.ts";

interface LoginProps {
  readonly refusal: string | undefined;
  readonly signIn: (token: string) => void;
  /** URL of the identity provider, if there is one. */
  readonly issuer: string | undefined;
}

export function Login({ refusal, signIn, issuer }: LoginProps): JSX.Element {
  const input = useRef<HTMLInputElement>(null);
  const submit = (event: Event) => {
    event.preventDefault();
    const token = input.current!.value.trim();
    if (token !== "") signIn(token);
  };
  return (
    <main class="login">
      <form onSubmit={submit}>
        <h1>reverse-http</h1>
        {issuer !== undefined && (
          <>
            <a class="button" href="login">Sign in with {visible(hostOf(issuer))}</a>
            <p>Or, with a token:</p>
          </>
        )}
        <label for="token">Token</label>
        <input
          id="token"
          ref={input}
          type="password"
          autocomplete="off"
          spellcheck={false}
          required
          autofocus
          aria-describedby="token-help"
          aria-invalid={refusal !== undefined}
        />
        <p id="token-help">
          The token of a viewer or an operator, from the file of <code>--admin.token-file</code>. This tab forgets it when it is closed.
        </p>
        {refusal !== undefined && <p role="alert" class="error">{refusal}</p>}
        <button type="submit" class="primary">Sign in</button>
      </form>
    </main>
  );
}

function hostOf(url: string): string {
  return URL.canParse(url) ? new URL(url).host : url;
}
