package c_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestHeap measures what Mbed TLS has from the heap while a device serves two visitors
// inline, and comes back once. IOTTUNNEL_MBEDTLS names a folder with the sources of Mbed
// TLS: then it is a microcontroller's configuration (examples/iott_mbedtls_config.h) on a
// processor of 32 bits, else the system's library.
func TestHeap(t *testing.T) {
	most, now := uint64(96<<10), uint64(48<<10) // two buffers of 16 KiB, and tables for speed
	var program []string
	if source := os.Getenv("IOTTUNNEL_MBEDTLS"); source != "" {
		most, now = 48<<10, 30<<10
		program = []string{"qemu-arm-static", buildSmall(t, source)}
	} else {
		program = []string{buildWrapped(t)}
	}
	dir := t.TempDir()
	config, ca := chain(t, dir)
	ln, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	out := visits(t, ln, append(program, "wss://"+ln.Addr().String(), "cam-17", "cam-17-token", ca))
	found := regexp.MustCompile(`heap: most (\d+), now (\d+) in (\d+) blocks`).FindStringSubmatch(out)
	if found == nil {
		t.Fatalf("the program said %q", out)
	}
	t.Log(found[0])
	for i, bound := range []uint64{most, now} {
		if n, err := strconv.ParseUint(found[1+i], 10, 64); err != nil || n > bound || n < 4<<10 {
			t.Errorf("%s: want at most %d", found[0], bound)
		}
	}
}

// buildWrapped links the example with the system's library.
func buildWrapped(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "tls")
	build(t, "cc", "-std=c99", "-D_POSIX_C_SOURCE=200809L", "-Wall", "-Wextra", "-Werror", "-Os", "-o", binary,
		"../examples/tls.c", "../puppet/heap.c", "../iott.c", "../iott_posix.c", "../iott_mbedtls.c",
		"-Wl,--wrap=calloc", "-Wl,--wrap=free", "-Wl,-Bstatic", "-lmbedtls", "-lmbedx509", "-lmbedcrypto", "-Wl,-Bdynamic")
	return binary
}

// buildSmall compiles Mbed TLS with it.
func buildSmall(t *testing.T, source string) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "tls")
	files, err := filepath.Glob(filepath.Join(source, "library", "*.c"))
	if err != nil || len(files) == 0 {
		t.Fatalf("IOTTUNNEL_MBEDTLS: no sources in %s/library: %v", source, err)
	}
	build(t, "arm-linux-gnueabihf-gcc", append([]string{
		"-std=c99", "-D_POSIX_C_SOURCE=200809L", "-Os", "-static", "-Wl,--no-warnings", "-o", binary,
		"-I../examples", "-I" + filepath.Join(source, "include"), `-DMBEDTLS_CONFIG_FILE="iott_mbedtls_config.h"`, "-DHEAP_UNWRAPPED",
		"-DMBEDTLS_PLATFORM_MEMORY", "-DMBEDTLS_PLATFORM_CALLOC_MACRO=__wrap_calloc", "-DMBEDTLS_PLATFORM_FREE_MACRO=__wrap_free",
		"-DIOTT_MBEDTLS_SOCKETS=1", "../examples/tls.c", "../puppet/heap.c", "../iott.c", "../iott_posix.c", "../iott_mbedtls.c",
	}, files...)...)
	return binary
}

func build(t *testing.T, compiler string, args ...string) {
	t.Helper()
	if out, err := exec.Command(compiler, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", compiler, strings.Join(args, " "), err, out)
	}
}

// chain makes certificates as a public authority has them: a root with RSA, which the
// device knows, and an intermediate and the edge's own with elliptic curves.
func chain(t *testing.T, dir string) (*tls.Config, string) {
	t.Helper()
	sign := func(name string, serial int64, ca bool, public any, parent *x509.Certificate, signer any) (*x509.Certificate, []byte) {
		template := &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name, Organization: []string{"Certificates for Tests"}},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			IsCA: ca, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
			OCSPServer: []string{"http://ocsp.example.com"}, CRLDistributionPoints: []string{"http://crl.example.com/1.crl"},
		}
		if ca {
			template.KeyUsage = x509.KeyUsageCertSign
		} else {
			template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
			template.DNSNames = []string{"edge.example.com", "127.0.0.1"} // Mbed TLS 2.28 knows no addresses
		}
		if parent == nil {
			parent = template
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert, der
	}
	rootKey, err := rsa.GenerateKey(rand.Reader, 4096)
	if err != nil {
		t.Fatal(err)
	}
	middleKey, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root, rootDER := sign("Root", 1, true, rootKey.Public(), nil, rootKey)
	middle, middleDER := sign("Intermediate", 2, true, middleKey.Public(), root, rootKey)
	_, der := sign("edge.example.com", 3, false, key.Public(), middle, middleKey)
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: rootDER}), 0o600); err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der, middleDER}, PrivateKey: key}}}, ca
}

// serveTwo plays the edge: it takes the device's tunnel, sends it two visitors, and returns
// when both have their answers and neither stream is over.
func serveTwo(conn io.ReadWriter) error {
	r := bufio.NewReader(conn)
	request, err := http.ReadRequest(r)
	if err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	sum := sha1.Sum([]byte(request.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	say := "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " +
		base64.StdEncoding.EncodeToString(sum[:]) + "\r\nSec-WebSocket-Protocol: iottunnel.v1\r\n\r\n"
	hexed := ready("early,inline", `"early":1024,"early_total":2048,`)
	for stream := range 2 {
		hexed += open(stream+1, `,"early":1024`) + frameOf(1, byte(stream+1), "GET / HTTP/1.1\r\n\r\n")
	}
	raw, err := hex.DecodeString(hexed)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(conn, say+string(raw)); err != nil {
		return err
	}
	for ends := 0; ends < 2; {
		payload, err := readMasked(r)
		if err != nil {
			return err
		}
		if len(payload) == 5 && payload[0] == 2 { // fin: the answer has ended
			ends++
		}
	}
	return nil
}

// readMasked reads one frame of an agent, and returns its payload.
func readMasked(r io.Reader) ([]byte, error) {
	head := make([]byte, 2)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	n := int(head[1] & 0x7f)
	if n == 126 {
		if _, err := io.ReadFull(r, head); err != nil {
			return nil, err
		}
		n = int(binary.BigEndian.Uint16(head))
	}
	payload := make([]byte, 4+n)
	if _, err := io.ReadFull(r, payload); err != nil {
		return nil, err
	}
	mask, payload := payload[:4], payload[4:]
	for i := range payload {
		payload[i] ^= mask[i%4]
	}
	return payload, nil
}
