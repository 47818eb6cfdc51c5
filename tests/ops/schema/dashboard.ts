import type { Dashboard } from '@grafana/schema';

// Grafana's own type of a dashboard, with the words of its enumerations in place of the enumerations: JSON has words.
type Words<T> = T extends string ? `${T}` : T extends object ? { [K in keyof T]: Words<T[K]> } : T;

export type Written = Words<Dashboard>;
