package socket

import (
	"bytes"
	"crypto/tls"
	"net"
	"reflect"
	"unsafe"
)

// tlsBuffers are where a tls.Conn has its buffers of what came in. They are as
// large as the handshake has made them, for as long as the connection lives:
// about 5 KiB, where an idle socket needs half a KiB. Empty, should crypto/tls be
// made otherwise one day.
var tlsBuffers = findBuffers("rawInput", "hand")

func findBuffers(names ...string) (offsets []uintptr) {
	conn := reflect.TypeFor[tls.Conn]()
	for _, name := range names {
		if f, ok := conn.FieldByName(name); ok && f.Type == reflect.TypeFor[bytes.Buffer]() {
			offsets = append(offsets, f.Offset)
		}
	}
	return offsets
}

// trimTLS lets the empty buffers of a TLS connection go after its handshake, for
// the next read to make them as large as it needs. Nobody may read conn meanwhile.
func trimTLS(conn net.Conn) {
	c, ok := conn.(*tls.Conn)
	if !ok || !c.ConnectionState().HandshakeComplete {
		return
	}
	for _, offset := range tlsBuffers {
		// The field is what findBuffers has seen: a bytes.Buffer at this offset.
		if b := (*bytes.Buffer)(unsafe.Add(unsafe.Pointer(c), offset)); b.Len() == 0 {
			*b = bytes.Buffer{}
		}
	}
}
