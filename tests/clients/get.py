"""Gets every URL given through the proxy given first, with requests and with urllib, and prints what came."""
import ssl
import sys
import urllib.request

import requests

proxy, ca, *urls = sys.argv[1:]
proxies = {"http": proxy, "https": proxy}
opener = urllib.request.build_opener(
    urllib.request.ProxyHandler(proxies),
    urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca)),
)
for url in urls:
    response = requests.get(url, proxies=proxies, verify=ca, timeout=20)
    print(response.status_code, response.text)
    with opener.open(url, timeout=20) as answer:
        print(answer.status, answer.read().decode())
