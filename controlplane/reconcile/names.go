package reconcile

import (
	"crypto/sha256"
	"strings"
)

// hashAlphabet is what Kubernetes draws its generated names from: no vowels
// and no look-alikes, so that no word and no misreading comes out.
const hashAlphabet = "bcdfghjklmnpqrstvwxz2456789"

// Hash is a name of n characters (at most 32) for the parts; the same parts
// always give the same name.
func Hash(n int, parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	b := make([]byte, n)
	for i := range b {
		b[i] = hashAlphabet[int(sum[i])%len(hashAlphabet)]
	}
	return string(b)
}

// maxDerivedBase keeps derived names within one DNS label with five more
// characters, as Kubernetes does for generateName.
const maxDerivedBase = 58

// DerivedName puts a hash behind the name of the object that it is derived
// from, which is cut where the whole would be no DNS label.
func DerivedName(base, hash string) string {
	base += "-"
	if limit := maxDerivedBase + 5 - len(hash); len(base) > limit {
		base = base[:limit-1] + "-"
	}
	return base + hash
}
