"""Show runs on one page of HTML that needs no network: verdict, findings, curves, pictures, config."""
