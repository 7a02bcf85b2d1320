// Package reconcile runs controllers: pure functions from a key and a view of
// the cluster to the records that should be. One generic diff turns what they
// return into compare-and-swap writes; wake-ups carry no content, so a lost,
// doubled or late one changes nothing.
package reconcile
