package wire

import (
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Objects are read without reflection: what package encoding/json needs for that takes
// 80 KB on a device, and more time than all else of a message.

var errNoObject = errors.New("not a JSON object")

// Texts returns the members of a JSON object that are strings, by their names; nil
// when text is no such object.
func Texts(text []byte) map[string]string {
	texts := make(map[string]string)
	err := members(text, func(name, value string) error {
		if value[0] == '"' {
			texts[name] = unquote(value)
		}
		return nil
	})
	if err != nil {
		return nil
	}
	return texts
}

// members calls f with the name of each member of a JSON object, and its value as
// JSON, in order. An error is f's, or says that text is no such object.
func members(text []byte, f func(name, value string) error) error {
	if !json.Valid(text) {
		return errNoObject
	}
	s := skip(string(text))
	if s[0] != '{' {
		return errNoObject
	}
	for s = skip(s[1:]); s[0] != '}'; {
		n := length(s)
		name := unquote(s[:n])
		s = skip(skip(s[n:])[1:]) // a colon
		n = length(s)
		if err := f(name, s[:n]); err != nil {
			return err
		}
		if s = skip(s[n:]); s[0] == ',' {
			s = skip(s[1:])
		}
	}
	return nil
}

// skip cuts white space off (RFC 8259 §2).
func skip(s string) string { return strings.TrimLeft(s, " \t\r\n") }

// length is that of the value with which s, valid JSON, begins.
func length(s string) int {
	depth := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '"':
			for i++; s[i] != '"'; i++ {
				if s[i] == '\\' {
					i++
				}
			}
			if depth == 0 {
				return i + 1
			}
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 { // behind a number or a word
				return i
			}
			if depth--; depth == 0 {
				return i + 1
			}
		case ',', ':', ' ', '\t', '\r', '\n':
			if depth == 0 {
				return i
			}
		}
	}
	return len(s)
}

// unquote is what a JSON string says. What is no character is U+FFFD.
func unquote(s string) string {
	s = s[1 : len(s)-1]
	if strings.IndexByte(s, '\\') < 0 && utf8.ValidString(s) {
		return s
	}
	b := make([]byte, 0, len(s))
	for len(s) > 0 {
		if s[0] != '\\' {
			r, n := utf8.DecodeRuneInString(s)
			b, s = utf8.AppendRune(b, r), s[n:]
			continue
		}
		r, n := rune(s[1]), 2
		switch r {
		case 'b':
			r = '\b'
		case 'f':
			r = '\f'
		case 'n':
			r = '\n'
		case 'r':
			r = '\r'
		case 't':
			r = '\t'
		case 'u':
			r, n = hex4(s), 6
			if utf16.IsSurrogate(r) {
				pair := utf16.DecodeRune(r, hex4(s[n:]))
				if r = pair; pair != utf8.RuneError {
					n = 12
				}
			}
		}
		b, s = utf8.AppendRune(b, r), s[n:]
	}
	return string(b)
}

// hex4 is the code unit of an escape \uXXXX with which s begins; U+FFFD if it begins
// with none.
func hex4(s string) rune {
	if len(s) < 6 || s[0] != '\\' || s[1] != 'u' {
		return utf8.RuneError
	}
	n, err := strconv.ParseUint(s[2:6], 16, 16)
	if err != nil {
		return utf8.RuneError
	}
	return rune(n)
}

// assign puts a value, which is JSON, at to, a pointer to a string or to a whole
// number. null stands for nothing.
func assign(to any, value string) error {
	if value == "null" {
		return nil
	}
	if to, ok := to.(*string); ok {
		if value[0] != '"' {
			return errors.New("is not a string")
		}
		*to = unquote(value)
		return nil
	}
	var err error
	var signed int64
	var unsigned uint64
	switch to := to.(type) {
	case *int:
		signed, err = strconv.ParseInt(value, 10, strconv.IntSize)
		*to = int(signed)
	case *int64:
		*to, err = strconv.ParseInt(value, 10, 64)
	case *uint16:
		unsigned, err = strconv.ParseUint(value, 10, 16)
		*to = uint16(unsigned)
	case *uint32:
		unsigned, err = strconv.ParseUint(value, 10, 32)
		*to = uint32(unsigned)
	default:
		return nil // a field that nobody knows
	}
	if err != nil {
		return errors.New("is not a whole number that fits")
	}
	return nil
}
