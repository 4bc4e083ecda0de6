package roundtrip

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// notCopied are the fields of a request's header that its head has for itself.
func notCopied(name string) bool {
	switch name {
	case "Host", "User-Agent", "Content-Length", "Transfer-Encoding", "Trailer":
		return true
	}
	return false
}

// appendHead appends the head of r: as net/http's Transport writes it, which does
// not add anything but Host and the framing. length is that of the body, -1 if it
// is not known: then it is chunked. alone asks the device to close the connection
// after its answer. Nothing that could be taken for another line gets through.
func appendHead(b []byte, r *http.Request, length int64, alone bool) ([]byte, error) {
	method := r.Method
	if method == "" {
		method = http.MethodGet
	}
	host := r.Host
	if host == "" {
		host = r.URL.Host
	}
	if !validName(method) || host == "" || !httpguts.ValidHostHeader(host) {
		return b, fmt.Errorf("request cannot be sent: method %.40q, host %.40q", method, host)
	}
	b = append(append(b, method...), ' ')
	target := len(b)
	if b = appendTarget(b, r); !validTarget(b[target:]) {
		return b, fmt.Errorf("request cannot be sent: target %.40q", b[target:])
	}
	b = append(append(append(b, " HTTP/1.1\r\nHost: "...), host...), "\r\n"...)
	if agent := r.Header["User-Agent"]; len(agent) > 0 && agent[0] != "" {
		var err error
		if b, err = appendField(b, "User-Agent", agent[0]); err != nil {
			return b, err
		}
	}
	switch {
	case length > 0 || length == 0 && announcesEmpty(method):
		b = append(strconv.AppendInt(append(b, "Content-Length: "...), length, 10), "\r\n"...)
	case length < 0:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
		if names := slices.DeleteFunc(slices.Sorted(maps.Keys(r.Trailer)), ofFraming); len(names) > 0 {
			var err error
			if b, err = appendField(b, "Trailer", strings.Join(names, ",")); err != nil {
				return b, err
			}
		}
	}
	for name, values := range r.Header {
		if notCopied(name) {
			continue
		}
		for _, value := range values {
			var err error
			if b, err = appendField(b, name, value); err != nil {
				return b, err
			}
		}
	}
	if alone && len(r.Header["Connection"]) == 0 {
		b = append(b, "Connection: close\r\n"...)
	}
	return append(b, "\r\n"...), nil
}

// announcesEmpty reports whether servers want to be told that there is no body
// (RFC 9110 §8.6).
func announcesEmpty(method string) bool {
	return method == http.MethodPost || method == http.MethodPut || method == http.MethodPatch
}

// appendTarget appends the path and the query.
func appendTarget(b []byte, r *http.Request) []byte {
	u := r.URL
	if u.Opaque != "" {
		return append(b, u.RequestURI()...)
	}
	path := u.EscapedPath()
	if path == "" {
		path = "/"
	}
	b = append(b, path...)
	if u.ForceQuery || u.RawQuery != "" {
		b = append(append(b, '?'), u.RawQuery...)
	}
	return b
}

// validTarget refuses what would end the target.
func validTarget(b []byte) bool {
	for _, c := range b {
		if c <= ' ' || c == 0x7f {
			return false
		}
	}
	return true
}

func appendField(b []byte, name, value string) ([]byte, error) {
	if !validName(name) || !validValue(value) {
		return b, fmt.Errorf("request cannot be sent: header %.40q: %.40q", name, value)
	}
	b = append(append(append(b, name...), ": "...), value...)
	return append(b, "\r\n"...), nil
}
