/** The tab's title: also a tab that nobody looks at says how far its job is. */

import { useEffect } from 'react';

export function useTitle(title: string): void {
  useEffect(() => {
    document.title = `${title} · epochcast`;
  }, [title]);
}
