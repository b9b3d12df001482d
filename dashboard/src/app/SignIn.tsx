/** Signing in by token: checked once against the gateway, then kept for this tab. */

import { type FormEvent, useState } from 'react';
import { Rest } from '../rest/Rest.ts';

export function SignIn({ reason, onToken }: { reason: string; onToken: (token: string) => void }) {
  const [problem, setProblem] = useState(reason);
  const [busy, setBusy] = useState(false);

  const submit = async (event: FormEvent<HTMLFormElement>) => {
    event.preventDefault();
    const token = String(new FormData(event.currentTarget).get('token') ?? '').trim();
    if (!/^[!-~]+$/.test(token)) {
      setProblem('the token holds characters that no token has; copy it again');
      return;
    }
    setBusy(true);
    try {
      await new Rest(token, () => undefined).get('/training-jobs?limit=1');
      onToken(token);
    } catch (error) {
      setProblem((error as Error).message);
    } finally {
      setBusy(false);
    }
  };

  return (
    <main className="sign-in">
      <h1>
        <span className="mark" aria-hidden="true" />
        epochcast
      </h1>
      <form onSubmit={submit}>
        <label>
          Token
          <input
            name="token"
            type="password"
            autoComplete="off"
            spellCheck={false}
            required
            autoFocus
            aria-describedby="token-help"
          />
        </label>
        {problem && (
          <p className="field-error" role="alert">
            {problem}
          </p>
        )}
        <button className="primary" disabled={busy}>
          {busy ? 'Checking …' : 'Sign in'}
        </button>
        <p id="token-help" className="soft">
          <code>epochcast up</code> prints a link that signs in by itself. Where the secret is,{' '}
          <code>epochcast token create</code> makes a token. It is kept for this tab only.
        </p>
      </form>
    </main>
  );
}
