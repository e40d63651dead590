/** ubd from a TypeScript program: `import { connect } from 'ubd'`. See client/client.ts. */
export { type ErrorCode, type ErrorRecord, type Place, UbdError } from './base/errors.ts';
export type * from './client/api.ts';
export { Client, type ConnectOptions, connect } from './client/client.ts';
export type * from './client/exports.ts';
export type { Dirs, Paths } from './client/paths.ts';
