/** The newest value there was: a page doesn't go blank while it asks again. */

import { useEffect, useMemo } from 'react';

export function useLast<Value>(value: Value | null, first: Value): Value {
  const kept = useMemo(() => ({ value: first }), []);
  useEffect(() => {
    if (value !== null) kept.value = value;
  }, [kept, value]);
  return value ?? kept.value;
}
