// Package names decides what is a device id, a label and a visitor's Host.
//
// testdata holds the cases that every other reader of the same names, such as
// the Lua route, must decide alike.
package names

import (
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"strings"
)

// maxLabel is the length of a DNS label (RFC 1035 §2.3.4), and so of a device id
// and of `label--port` in a hostname.
const maxLabel = 63

// CheckDevice says why id cannot be a device id: letters a-z, digits and single
// hyphens inside, at most 63 characters (which `xn--…` is not).
//
// An id of more than 56 characters leaves no room for `--65535` in one DNS
// label: where hostnames are made of ids, only its bare hostname resolves.
func CheckDevice(id string) error {
	switch {
	case id == "":
		return errors.New("device id is empty")
	case len(id) > maxLabel:
		return fmt.Errorf("device id is longer than %d characters", maxLabel)
	case strings.Contains(id, "--"):
		return errors.New("device id holds --, which separates a label from a port")
	}
	if i := misplaced(id); i >= 0 {
		return fmt.Errorf("device id: %q at %d is not allowed (a-z, 0-9, and - inside)", id[i], i+1)
	}
	return nil
}

// validDevice is CheckDevice without the reason, and without an allocation.
func validDevice(id string) bool {
	return id != "" && len(id) <= maxLabel && !strings.Contains(id, "--") && misplaced(id) < 0
}

// misplaced is the index of the first byte that cannot stand where it stands in
// a device id; -1 when there is none.
func misplaced(id string) int {
	for i := range len(id) {
		c := id[i]
		alnum := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if !alnum && (c != '-' || i == 0 || i == len(id)-1) {
			return i
		}
	}
	return -1
}

// labelEncoding is lower-case RFC 4648 base32: letters and 2-7.
var labelEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// NewLabel draws a label of 80 random bits, 16 characters.
func NewLabel() string {
	var b [10]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return labelEncoding.EncodeToString(b[:])
}
