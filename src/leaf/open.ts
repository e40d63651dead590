/** Placeholder of the room's interface; see ARCHITECTURE.md. */
export interface OpenedLeaf {
  fd: number;
}
