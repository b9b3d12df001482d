/** The dashboard: signed in it shows the address' page, otherwise how to sign in. */

import { Component, lazy, type ReactNode, Suspense, useEffect, useMemo, useState } from 'react';
import { JobsPage } from '../jobs/JobsPage.tsx';
import { type Problem, Rest } from '../rest/Rest.ts';
import { FleetStream, wantsToken } from '../stream/index.ts';
import { Notice } from '../ui/Notice.tsx';
import { type Platform, PlatformContext } from './platform.tsx';
import { Link, type Route, routeOf, usePath } from './router.tsx';
import { keepToken, takeToken, whoIs } from './session.ts';
import { Shell } from './Shell.tsx';
import { SignIn } from './SignIn.tsx';

const JobPage = lazy(() => import('../job/JobPage.tsx'));
const ComparePage = lazy(() => import('../compare/ComparePage.tsx'));
const SubmitPage = lazy(() => import('../submit/SubmitPage.tsx'));
const FleetPage = lazy(() => import('../fleet/FleetPage.tsx'));
const ModelsPage = lazy(() => import('../models/ModelsPage.tsx'));
const ModelPage = lazy(() => import('../models/ModelPage.tsx'));

export function App({ firstToken }: { firstToken: string | null }) {
  // An object: signing in again with the same token begins anew too, for its stream has been refused for good.
  const [session, setSession] = useState({ token: firstToken });
  const [refusal, setRefusal] = useState<string | null>(null);

  const signIn = (given: string | null) => {
    keepToken(given);
    setRefusal(null);
    setSession({ token: given });
  };

  useEffect(() => {
    // A link with a token, opened in a tab that is here already, changes only the fragment.
    const taken = () => location.hash.includes('token=') && signIn(takeToken());
    addEventListener('hashchange', taken);
    return () => removeEventListener('hashchange', taken);
  }, []);

  const platform = useMemo<Platform>(() => {
    const { token } = session;
    const refused = (problem: Problem) => setRefusal(problem.code === 'authentication_required' ? '' : problem.message);
    return { rest: new Rest(token, refused), token, who: whoIs(token), fleet: new FleetStream({ token }) };
  }, [session]);
  useEffect(() => {
    const { fleet } = platform;
    const leave = fleet.subscribe(() => {
      const { phase, close } = fleet.connection;
      if (phase === 'refused' && close && wantsToken(close)) {
        setRefusal(
          (known) => known ?? (close.reason === 'authentication required' ? '' : `${close.reason}; sign in again`),
        );
      }
    });
    return () => {
      leave();
      fleet.close();
    };
  }, [platform]);

  if (refusal !== null) return <SignIn reason={refusal} onToken={signIn} />;
  return (
    <PlatformContext value={platform}>
      <Shell onSignOut={() => signIn(null)}>
        <CurrentPage />
      </Shell>
    </PlatformContext>
  );
}

function CurrentPage() {
  const path = usePath();
  return (
    <Barrier key={path}>
      <Suspense fallback={<p className="waiting">Loading …</p>}>{pageOf(routeOf(path))}</Suspense>
    </Barrier>
  );
}

function pageOf(route: Route): ReactNode {
  switch (route.page) {
    case 'jobs':
      return <JobsPage />;
    case 'job':
      return <JobPage jobId={route.id} />;
    case 'compare':
      return <ComparePage />;
    case 'submit':
      return <SubmitPage />;
    case 'fleet':
      return <FleetPage />;
    case 'models':
      return <ModelsPage />;
    case 'model':
      return <ModelPage modelId={route.id} />;
    case 'nowhere':
      return (
        <Notice isPage title="There is no such page">
          The address is wrong. <Link href="/">All jobs</Link>
        </Notice>
      );
  }
}

/** A fault of one page leaves the others usable. */
class Barrier extends Component<{ children: ReactNode }, { error: Error | null }> {
  override state = { error: null as Error | null };

  static getDerivedStateFromError(error: Error) {
    return { error };
  }

  override render() {
    const { error } = this.state;
    if (!error) return this.props.children;
    return (
      <Notice isPage kind="bad" title="This page could not be shown">
        {error.message}{' '}
        <button type="button" onClick={() => location.reload()}>
          Load it again
        </button>
      </Notice>
    );
  }
}
