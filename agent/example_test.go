package agent_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"

	"github.com/iottunnel/iottunnel/agent"
)

// A device with a web server on port 8080, and ssh for its maintainers.
func Example() {
	a, err := agent.New(agent.Config{
		Servers: []string{"wss://edge.example.com"},
		Device:  "cam-17",
		Token:   os.Getenv("IOTTUNNEL_TOKEN"),
		Forwards: []agent.Forward{
			{Port: 80, Target: "127.0.0.1:8080"},
			{Port: 22, Target: "127.0.0.1:22"},
		},
		OnUp: func(up agent.Up) {
			for _, p := range up.Ports {
				fmt.Println(p.Number, p.Kind, p.URL)
			}
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := a.Run(ctx); err != nil {
		log.Fatal(err)
	}
}

// A handler is served to the world, and no port of the device is open.
func ExampleListen() {
	l, forward := agent.Listen(80, agent.HTTP)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "hello,", r.RemoteAddr)
	})}
	go server.Serve(l)
	defer server.Close()

	a, err := agent.New(agent.Config{
		Servers:  []string{"wss://edge.example.com"},
		Device:   "thermometer-1",
		Token:    os.Getenv("IOTTUNNEL_TOKEN"),
		Forwards: []agent.Forward{forward},
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	a.Run(ctx)
}

// What a Forward leads to can be tried without an edge.
func ExampleForward() {
	l, forward := agent.Listen(7, agent.TCP)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		io.WriteString(c, "hello")
	}()
	c, err := forward.Dial(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	b, err := io.ReadAll(c)
	fmt.Println(string(b), err)
	// Output: hello <nil>
}
