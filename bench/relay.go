//go:build linux

package main

import (
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
)

// beRelay is a plain TCP relay, as short as one can be written: a connection and
// two goroutines per visitor, and io.Copy, which splices. It prints its address.
//
//	relay [-listen-tls CERT,KEY] [-dial-tls] LISTEN TARGET
func beRelay(args []string) error {
	flags := flag.NewFlagSet("relay", flag.ContinueOnError)
	pair := flags.String("listen-tls", "", "certificate and key `files`, separated by a comma")
	dialTLS := flags.Bool("dial-tls", false, "TLS to the target, which is not verified")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 2 {
		return errors.New("relay wants two addresses")
	}
	l, err := net.Listen("tcp", flags.Arg(0))
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stdout, l.Addr())
	if *pair != "" {
		cert, key, _ := strings.Cut(*pair, ",")
		loaded, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return err
		}
		l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{loaded}})
	}
	dial := func() (net.Conn, error) { return net.Dial("tcp", flags.Arg(1)) }
	if *dialTLS {
		config := &tls.Config{InsecureSkipVerify: true, ClientSessionCache: tls.NewLRUClientSessionCache(4)}
		dial = func() (net.Conn, error) { return tls.Dial("tcp", flags.Arg(1), config) }
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go relay(c, dial) // ends with the connections
	}
}

func relay(visitor net.Conn, dial func() (net.Conn, error)) {
	defer visitor.Close()
	service, err := dial()
	if err != nil {
		return
	}
	defer service.Close()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		pass(service, visitor)
	}()
	pass(visitor, service)
	<-ended
}

// pass copies until an end, and passes that on; an error ends both directions.
func pass(to, from net.Conn) {
	if _, err := io.Copy(to, from); err != nil {
		to.Close()
		from.Close()
		return
	}
	_ = to.(interface{ CloseWrite() error }).CloseWrite() // it may be closed already
}
