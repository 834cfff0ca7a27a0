"""The operations around the UNet, each with its plain-torch reference."""
