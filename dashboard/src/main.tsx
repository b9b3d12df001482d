/** Starts the dashboard. */

import { createRoot } from 'react-dom/client';
import { App } from './app/App.tsx';
import { takeToken } from './app/session.ts';
import { applyTheme } from './app/theme.ts';
import './styles/base.css';
import './styles/shell.css';
import './styles/parts.css';
import './styles/pages.css';

applyTheme();
const token = takeToken();
createRoot(document.getElementById('root')!).render(<App firstToken={token} />);
