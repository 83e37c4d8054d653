// Gets every URL given through the proxy given first, and prints what came: net/http as programs use it.
package main

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
)

func main() {
	proxy, err := url.Parse(os.Args[1])
	if err != nil {
		fail(err)
	}
	client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(proxy)}}
	for _, target := range os.Args[2:] {
		response, err := client.Get(target)
		if err != nil {
			fail(err)
		}
		body, err := io.ReadAll(response.Body)
		if err != nil {
			fail(err)
		}
		response.Body.Close()
		fmt.Println(response.StatusCode, string(body))
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
