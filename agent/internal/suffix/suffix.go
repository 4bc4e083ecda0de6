// Package suffix knows the domains under which anyone may register.
package suffix

import (
	_ "embed"
	"encoding/binary"
	"sort"
	"strings"
)

// table is made of https://publicsuffix.org's list by the test: the hash of each
// rule of two labels or more, sorted, 4 bytes each, big-endian. Whether a name is a
// rule is all that is asked, and so takes half of what the list would. That two names
// have one hash makes, at worst, one in 200,000 domains a public one.
//
//go:embed suffixes.bin
var table string

const size = 4 // of a hash, in bytes

// Public reports whether domain, in lower case and without a dot at either end, is a
// public suffix, such as co.uk. Of one label it always is.
func Public(domain string) bool {
	_, parent, found := strings.Cut(domain, ".")
	if !found {
		return true
	}
	return !has("!"+domain) && (has(domain) || has("*."+parent))
}

// has reports whether the list has a rule.
func has(rule string) bool {
	h := hash(rule)
	at := func(i int) uint32 { return binary.BigEndian.Uint32([]byte(table[size*i : size*i+size])) }
	n := len(table) / size
	i := sort.Search(n, func(i int) bool { return at(i) >= h })
	return i < n && at(i) == h
}

// hash is FNV-1a's.
func hash(s string) uint32 {
	h := uint32(2166136261)
	for i := range len(s) {
		h = (h ^ uint32(s[i])) * 16777619
	}
	return h
}
