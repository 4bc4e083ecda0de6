// Package names decides what is a device id, a label and a visitor's Host.
//
// testdata/hosts.json holds the cases that the Lua route must decide alike.
package names

import (
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"strings"
)

// CheckDevice says why id cannot be a device id: letters a-z, digits and single
// hyphens inside, at most 63 characters, and not `xn--…`.
func CheckDevice(id string) error {
	switch {
	case id == "":
		return errors.New("device id is empty")
	case len(id) > 63:
		return errors.New("device id is longer than 63 characters")
	case strings.Contains(id, "--"):
		return errors.New("device id holds --, which separates a label from a port")
	}
	for i := range len(id) {
		c := id[i]
		alnum := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if !alnum && (c != '-' || i == 0 || i == len(id)-1) {
			return fmt.Errorf("device id: %q at %d is not allowed (a-z, 0-9, and - inside)", c, i+1)
		}
	}
	return nil
}

// labelEncoding is lower-case RFC 4648 base32: letters and 2-7.
var labelEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// NewLabel draws a label of 80 random bits, 16 characters.
func NewLabel() string {
	var b [10]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return labelEncoding.EncodeToString(b[:])
}
